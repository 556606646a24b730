package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// Format writes a node's configuration, or a home agent's, as a file with comments
// for whom it is handed to. What has its default is left out. Load reads the same
// again.
func Format(c *Config) ([]byte, error) {
	var b bytes.Buffer
	if err := layout.Execute(&b, c); err != nil {
		return nil, fmt.Errorf("config: format: %w", err)
	}
	return b.Bytes(), nil
}

// line is a key with its value and a comment, in columns as in docs/dsco.toml.
func line(key string, value any, comment string) string {
	text := ""
	switch v := value.(type) {
	case string:
		text = strconv.Quote(v)
	case fmt.Stringer:
		text = strconv.Quote(v.String())
	case Duration:
		text = strconv.Quote(time.Duration(v).String())
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = strconv.Quote(s)
		}
		text = "[" + strings.Join(quoted, ", ") + "]"
	default:
		text = fmt.Sprint(v)
	}
	if !bare(key) {
		key = strconv.Quote(key)
	}
	text = key + " = " + text
	if comment == "" {
		return text
	}
	return fmt.Sprintf("%-35s # %s", text, comment)
}

var defaultNode, defaultServer = func() (n Node, s Server) {
	n.setDefaults()
	s.setDefaults()
	return n, s
}()

var layout = template.Must(template.New("dsco.toml").Funcs(template.FuncMap{
	"line": line,
	// other is whether a value is set, and not to the default.
	"other": func(value, def any) bool { return !reflect.ValueOf(value).IsZero() && value != def },
	"node":  func() Node { return defaultNode },
	"dflt":  func() Server { return defaultServer },
}).Parse(`{{with .Node -}}
# Configuration of a server node: dsco node --config FILE
#
# dsco check FILE says what is wrong with it. docs/dsco.toml has every key with its
# default. After a change: systemctl reload dsco-node, which says what takes a restart.

[node]
{{line "name" .Name "of this node, in its certificate too"}}
{{line "address" .Address "the daemon's own, on this host: tunnels end there"}}
{{line "interface" .Interface "the one on the server network"}}
{{if other .ControlPort (node).ControlPort}}{{line "control_port" .ControlPort "TCP, where daemons accept each other's connections"}}
{{end}}{{if .Cluster}}
# Key, certificate and the list of the other nodes, which keep themselves up to date.
{{line "cluster" .Cluster ""}}
{{else}}
{{line "ca" .CA "the authority that signs all nodes' certificates"}}
{{line "cert" .Cert ""}}
{{line "key" .Key ""}}
{{end}}
{{if other .Socket (node).Socket}}{{line "socket" .Socket "of the API"}}
{{end}}{{if .Group}}{{line "group" .Group "its members may write to the API"}}
{{end}}{{if other .State (node).State}}{{line "state" .State "what has to survive a restart"}}
{{end}}{{if other .Queue (node).Queue}}{{line "queue" .Queue "number of the Netfilter queue"}}
{{end}}{{if .Peers}}
[node.peers]
{{range $name, $addr := .Peers}}{{line $name $addr ""}}
{{end}}{{end}}{{end}}{{range .Servers}}
# A distributed server. A file may have several; they are the same on all nodes.
[[server]]
{{line "address" .Address "what clients connect to, with the length of its home prefix"}}
{{line "home_agent" .HomeAgent ""}}
{{line "contact" .Contact "the node that is the contact at first"}}
{{if .KeyFile}}{{line "spi" .SPI "with the key it secures registrations (RFC 4285):"}}
{{line "key_file" .KeyFile "the same at the home agent and on all nodes"}}
{{end}}{{if .Users}}{{line "users" .Users "who may attach an application"}}
{{end}}{{if .UserGroups}}{{line "user_groups" .UserGroups "their members may, too"}}
{{end}}{{if other .MTU (dflt).MTU}}{{line "mtu" .MTU "of the TUN"}}
{{end}}{{if .DirectReturn}}{{line "direct_return" .DirectReturn "packets to relayed clients go straight out"}}
{{end}}{{if other .Tunnel (dflt).Tunnel}}{{line "tunnel" .Tunnel "somebody else's"}}
{{line "tunnel_interface" .TunnelInterface ""}}
{{end}}{{if other .IdleTimeout (dflt).IdleTimeout}}{{line "idle_timeout" .IdleTimeout "how long a client without connections keeps its owner"}}
{{end}}{{if .Nodes}}
[server.nodes]
{{range $name, $addr := .Nodes}}{{line $name $addr ""}}
{{end}}{{end}}{{end}}{{with .HomeAgent -}}
# Configuration of a home agent: dsco home-agent --config FILE
#
# dsco check FILE says what is wrong with it. docs/home-agent.toml has every key with
# its default.

[home_agent]
{{line "address" .Address "the home agent's, on that host"}}
prefixes = [{{range $i, $p := .Prefixes}}{{if $i}}, {{end}}"{{$p}}"{{end}}]
# interface = "eth0"                # on the home link, if the prefix is not routed to that host
{{range .Homes}}
[[home_agent.homes]]
{{line "address" .Address "of a distributed server"}}
{{line "spi" .SPI "with the key it secures registrations:"}}
{{line "key_file" .KeyFile "the same on all nodes"}}
{{end}}{{end}}`))
