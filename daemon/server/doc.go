// Package server is the API's server: HTTP over a UNIX socket, in front of a
// [Backend], which is a daemon of one of the roles.
//
//	s, err := server.New(server.Config{Socket: cfg.Socket, Group: cfg.Group, Backend: node})
//	if err != nil {
//		return err // the socket is another daemon's, or cannot be made: nothing has happened
//	}
//	go s.Serve()
//	…
//	s.Close()
//
// # Who may
//
// The socket is open to every user: the kernel says who has connected
// (SO_PEERCRED), and the table of routes (route.go) says what that user may do.
// Anyone may read. Root, the daemon's own user and the members of Config.Group
// may write. Who may attach the backend decides.
//
// # Bad clients
//
// A user has at most [Config.PerUser] connections, and all but root together
// Config.Connections, so that nobody locks root out. A request has to arrive
// within seconds and is of some KiB; an answer has to be taken. Readers of
// events that are too slow miss some, and are told how many.
package server
