// Package filter takes the packets of Mobile IPv6 out of the kernel's path
// before the kernel looks at them, through a Netfilter queue, and puts the
// rules there that lead them into it.
//
// # Theory of operation
//
// A kernel without Mobile IPv6 answers a mobility header with an ICMPv6
// Parameter Problem and forwards one that is for somebody else; either is wrong
// where a daemon is the mobile node, the home agent or the correspondent. So the
// raw table's PREROUTING chain, which packets pass before connection tracking sees
// them and before they are routed, sends them to the daemon:
//
//	               PREROUTING          routing
//	network ───────► raw ────────────────┬──► local
//	                  │  ▲               └──► forwarded (a TUN)
//	        NFQUEUE   ▼  │ verdict: accept, drop, replace
//	                 Filter ──► Handler
//
// All rules are in chains named after the queue, DSCO-7846 and below, and one
// rule with the comment dsco leads there, ahead of all others. They come, are
// replaced and go in one transaction each (ip6tables-restore): no packet meets
// half of them. A daemon that was killed leaves them behind; the next one with
// the same queue, or [Cleanup], takes them away. Who has the queue has the
// rules: the queue is bound before anything is changed, and the kernel binds a
// queue once.
//
// The rules are pure functions of a configuration ([NodeRules],
// [HomeAgentRules], [CorrespondentRules]), and so is what a queued packet is
// ([Classify]).
//
// # When nobody listens
//
// A daemon that was killed leaves a queue without a listener. What its rules
// select is then dropped, or goes on as if the rule was not there:
//
//   - Signalling to a node or a home agent is dropped. It is repeated, so
//     nothing is lost; passed on it would reach the application, which may not
//     see tokens, or be answered with an error that tells clients that there is
//     no Mobile IPv6 here.
//   - ICMPv6 errors go on: most are for the application or the kernel.
//   - At a correspondent everything goes on. What it sends then takes the way
//     through the home agent; what it gets is answered by the kernel with a
//     Parameter Problem, which is the truth, and has the other end use the
//     tunnel at once.
//
// A queue that is full drops, whoever listens: to TCP that is congestion, and
// signalling is repeated.
//
// What throws all rules away, as loading a firewall again often does, is noticed
// after a while ([Config].Watch), and they are put back.
//
// # Cost
//
// What has come together is read together, and its verdicts are one write
// (burst_linux.go), below the library, which would look at each packet's length first,
// read it into memory that it has cleared, and write its verdict. Where one packet
// follows the other, the way through the queue and back takes 5 to 7 µs more than the
// 9 of being forwarded, 31 to 43 where each is treated by itself, and 12 to 17 with
// two bare system calls for each (go test -bench Queue ./daemon/filter, by turns). On a node
// and a home agent no data packet comes here. To packets that are not their
// concern the rules add at most a tenth of what forwarding costs (-bench Others).
package filter
