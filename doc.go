// Package ds is what an application links to be a node of a distributed server:
// a group of machines with one address, the distributed server address, whose
// clients' live TCP connections move from machine to machine without the
// clients' noticing.
//
// # A server
//
//	var node ds.Node // attaches to dsco, the daemon of this machine
//	l, err := node.Listen("tcp", ":80")
//	if err != nil {
//		log.Fatal(err)
//	}
//	log.Fatal(http.Serve(l, handler))
//
// Listen gives connections from their beginning, nothing else. Connections that
// another node hands to this one come, with the state its application had of
// them, to whoever asks for them:
//
//	arrivals, err := node.ListenHandoff()
//	for {
//		in, err := arrivals.Accept()
//		...
//		for i, c := range in.Conns {
//			go serve(c, in.State[i])
//		}
//	}
//
// And they leave with
//
//	report, err := node.Handoff(ctx, client, "node-b", state)
//
// where client is an address, for everything between it and the server moves at
// once, and state is called for each connection. Where a client has one connection
// only, the goroutine that serves it may hand it off itself:
//
//	report, err := conn.(ds.Conn).Handoff(ctx, "node-b", []byte(user))
//
// Who is there to hand clients to, and what happens in the distributed server, tell
// [Node.Status], [Node.Clients] and [Node.Watch]. Package dstest runs a distributed
// server in memory, to test such programs with.
//
// # Theory of operation
//
// The connections end in a TCP/IP stack in the application's process (package
// stack), on a TUN whose descriptors the daemon hands over. No other process is
// on their way. What concerns the machine and the network is the daemon's: it
// outlives the application, knows the other nodes, and redirects the clients'
// packets with Mobile IPv6. The two talk in a session (package daemon/api), and
// connections travel as snapshots (package migrate).
//
//	donor                        daemons                        target
//	──────────────────────────────────────────────────────────────────────────
//	prepare   ask for the target's consent ────►   binding made ready
//	drain     handlers come to rest
//	freeze    nothing moves from here on
//	export    snapshot, application state
//	            ━━━━━━━━━━━━━━━ point of no return ━━━━━━━━━━━━━━━━━
//	transfer  ─────────────────────────────────►   rebuilt, silent
//	            what arrives late ─────────────►   taken: packets redirected, live
//	release   copies dropped, stragglers forwarded
//
// Whatever fails before transfer, the client goes on being served where it was.
// From then on it is for the target to say: it takes the client, or it does not and
// never will, and the client goes on where it was. At no time can more than one
// node send to it.
//
// # Application state
//
// A handler that reads, keeps something in mind, and writes, is at rest while it
// waits in Read: what it has read is dealt with, what it has written is on its
// way. So a handoff with a state function first lets reads wait, until of each
// connection one does. Then it freezes the connections and calls the function,
// which may look at what the handler keeps without a lock: the handler is
// waiting. If the handoff comes to nothing, its Read goes on as if nothing had
// happened; otherwise it fails with [ErrMoved]. Octets that were read but not yet
// dealt with, as in a bufio.Reader, are part of the state.
//
// A handler whose state says how much of something it has written already, such
// as a download, need not wait for a Read that never comes: see
// [Node.MoveInWrite]. Goroutines that touch the state beside the one that reads
// must be kept away from it by the state function, with a lock.
//
// A program that is not at rest whenever a Read waits, because it reads ahead or
// another goroutine works on what was read, says itself when it is not, with
// Pin, which every [Conn] has of [stack.Conn]. Package httpmove, an HTTP server whose
// connections move, is written so.
package ds
