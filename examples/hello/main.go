// Command hello serves HTTP on a distributed server: run it on each node, and hand
// its clients from one to another with "ds handoff", in the middle of a download.
package main

import (
	"fmt"
	"log"
	"net/http"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/httpmove"
)

// server serves a node: files, whose downloads move in the middle, and greetings,
// whose connections move between requests.
func server(node *ds.Node, files http.FileSystem) *httpmove.Server {
	mux := http.NewServeMux()
	mux.Handle("/", httpmove.Repeatable(http.FileServer(files)))
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) {
		name, _ := node.Name(r.Context())
		fmt.Fprintf(w, "hello %s, this is %s\n", r.RemoteAddr, name)
	})
	return &httpmove.Server{Node: node, Handler: mux}
}

func main() {
	node := new(ds.Node) // attaches to dsco, the daemon of this machine
	log.Fatal(server(node, http.Dir(".")).ListenAndServe())
}
