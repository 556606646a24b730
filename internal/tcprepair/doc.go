// Package tcprepair moves a live TCP connection the way the Linux kernel
// itself offers, with TCP_REPAIR. It is the baseline that migration in user
// space is measured against, so it is made as fast as the kernel allows.
//
// # Theory of operation
//
// A socket in repair mode is a connection that has stopped talking: it can be
// read out, closed and built up without a packet. One move is
//
//	dump       TCP_REPAIR on
//	           TCP_INFO, TCP_MAXSEG, TCP_TIMESTAMP, TCP_REPAIR_WINDOW
//	           per queue: TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, recv(MSG_PEEK)
//	close      close                      (the point of no return)
//	re-create  socket, TCP_REPAIR on
//	           per queue: TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ
//	           bind, connect
//	restore    TCP_REPAIR_OPTIONS, TCP_TIMESTAMP
//	           send: receive queue, then what was sent but not acknowledged
//	           TCP_REPAIR_WINDOW
//	           TCP_REPAIR off
//	           send: what was never sent, as an ordinary write
//
// The order is that of CRIU's library, with every call left out that the
// result does not need. What that gives away in the kernel's favour:
//
//   - Nothing drops packets while the connection is in no socket. CRIU installs
//     a packet filter for that time, because a segment that arrives then is
//     answered with RST. [Bench] makes the peer fall silent first.
//   - The connection goes live without a window probe (TCP_REPAIR_OFF_NO_WP);
//     see [Conn.WindowProbe].
//   - The addresses are not asked for in each move. SO_REUSEADDR is not set,
//     as repair mode implies it.
//   - Only what TCP itself needs is carried: no socket options such as buffer
//     sizes, no congestion state, no measured round-trip time. The kernel
//     offers no way to restore the latter two.
//   - State stays in the memory of one process; nothing is encoded.
//
// # What is in the queues
//
// Unread octets were sent by the peer, acknowledged by the moved end, and not
// read by its application. The receive queue holds exactly these.
//
// Unsent octets were written by the application of the moved end and have
// never been on the wire: the peer's window is zero, since its application does
// not read and its receive buffer is full. SIOCOUTQ and SIOCOUTQNSD are then
// both equal to their number. No octet is in flight. What filled the peer's
// window is in the peer's receive queue and acknowledged, and no part of the
// move. [Conn] also carries octets that were sent but not acknowledged.
//
// # Scope
//
// Established connections over IPv6 only, without urgent data. TCP_REPAIR needs
// CAP_NET_ADMIN in the user namespace that owns the network namespace; see
// [Probe].
package tcprepair
