// Package httpmove serves HTTP/1.1 on connections that move from node to node:
// an [http.Server] with ordinary handlers, on a [ds.Node].
//
//	node := new(ds.Node)
//	mux := http.NewServeMux()
//	mux.Handle("/files/", httpmove.Repeatable(http.FileServer(http.Dir("/srv"))))
//	mux.HandleFunc("/login", login)
//	server := &httpmove.Server{Node: node, Handler: mux}
//	log.Fatal(server.ListenAndServe())
//
// The same program runs on each node. A client moves when an operator says so, or
// with
//
//	report, err := server.Move(ctx, client, "node-b")
//
// # When a connection moves
//
//   - Between two requests, always; what has come of the next ones goes along, be
//     it half a head or twenty requests in advance.
//   - In the middle of a response, if its handler is [Repeatable].
//   - In the middle of a request's body, and once it is hijacked, if its handler
//     keeps a [Checkpoint].
//   - Otherwise the request is finished first. All connections of a client move at
//     once, so the handoff waits for all of them, at most [ds.Node.Patience]; then
//     it fails with [ds.ErrRestless] and the client stays.
//
// A request whose head has more than 128 KiB, a body of more than 64 KiB at a
// Repeatable handler, and a body in chunks, are finished first too. HTTP/2 and TLS
// are not served: their state is in places where nobody can fetch it.
//
// # Theory of operation
//
// Where net/http stands in a connection is on the stack of a goroutine. It is
// not fetched from there: a conn between TCP and net/http knows what the current
// request was and how much of the response TCP has taken, and the target begins
// again with that.
//
//	          ┌───────────── conn ─────────────┐
//	TCP ────► │ unread ──► input: log ─────────┼─► net/http ─► handler
//	TCP ◄──── │ output: heads, octets, sum ◄───┼── net/http ◄─ handler
//	          └────────────────────────────────┘
//
// input hands out one request at a time and keeps what has been handed out of it.
// At the target it is handed out again, so that net/http calls the same handler
// with the same request; output drops as many octets as the client has, and
// checks, by the head and a checksum, that they are the ones it has.
// If not, the connection is reset: a client must not get the first half of one
// thing and the second half of another.
//
// A connection is pinned ([stack.Conn.Pin]) while it cannot move. Calls to TCP
// never wait under conn's lock, so once the connection is frozen its state is
// what conn says.
package httpmove
