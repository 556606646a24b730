// Package member is one node of one distributed server, as a machine: whose each
// client is, which node is the contact, and how a client is handed off.
//
// # Theory of operation
//
// A member stands between the application, which has the connections; the
// members on other nodes; and the machines of Mobile IPv6 (package
// mobility/node), which it drives. Like them it reads no clock, opens no socket,
// starts no goroutine and draws no random number: it is told the time and what
// happened, and answers what is to be done.
//
//	for in := range inputs { // messages, packets, commands, ticks
//		out := m.Step(now(), in)
//		save(out.Save, out.Record)
//		send(out.Send)
//		relay(out.Relay)
//		toApplication(out.App)
//		toMembers(out.Peers)
//		tell(out.Events, out.Answers)
//	}
//
// # Owners
//
// A client has one owner, the member whose application has its connections.
// Ownership has an epoch, which grows with every handoff. The contact's relay
// sends a client's packets to the owner with the latest epoch it has heard of.
// The members know what they own; the contact knows because they tell it, when a
// client comes, when it goes, when a connection between two members begins, and
// when the contact changes.
//
// # Handoff
//
//	donor's app   donor              target        target's app
//	    │ Prepare   │ Prepare          │ Expect         │
//	    ├──────────►├─────────────────►├───────────────►│ hold
//	    │           │     care-of test │                │
//	    │ Prepared  │         Prepared │       Expected │
//	    │◄──────────┤◄─────────────────┤◄───────────────┤
//	  freeze        │                  │                │
//	    │ Transfer  │ Transfer         │ Offer          │
//	    ├──────────►╪═════════════════►├───────────────►│ import, silent
//	    │           │    taken, on disk│                │    ═: given away
//	    │           │   Binding Update │ Activate       │
//	    │ Late      │ Late             ├───────────────►╪ live, if it can take it
//	    ├┄┄┄┄┄┄┄┄┄┄►├┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄►├┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄►│
//	    │ Done      │             Done │      Activated │
//	    │◄──────────┤◄─────────────────┤◄───────────────┤
//	  discard       │                  │                │
//	    │ Settled   │ Settled          │                │
//	    ├──────────►├─────────────────►│ forgets        │
//
// Until Transfer any of them can call it off, and the donor's application thaws the
// client. Transfer is all that the target needs: with it the donor stops being the
// owner. It deletes what it knows of the binding and neither sends for the client
// nor answers for it until it hears Done. Done with an error means that the target
// does not have the client and never will: the donor is the owner once more, with
// a later epoch, and its Binding Update is behind any of the target's.
//
// The target's member does not wait for its application, which rebuilds the connections
// and goes live in one go: two messages fewer while the client waits. Who has the last
// word is decided in memory that the two share (Words): the application takes the client
// right before it goes live, and the member can overrule that as long as it has not, for
// ever: when the application has ended or takes too long, and when the donor asks (Query),
// because the connection between the two was lost, nothing was heard, or its application
// does not want to wait. A client that was not taken goes back. It may have heard of the
// target, whose application holds what it sends from Expect on, and sends it back too.
//
// What the client sends in between comes to the donor, and is sent after the
// connections (Late), so that the target has it when it goes live.
//
// A daemon that ends takes its member's memory along, while the applications go
// on. What has to be known afterwards the application tells with its Hello: what
// it owns, and which handoffs it is in doubt about. The exception is what a target
// has taken: the client may have gone on, or away, before its donor asks. So that
// is recorded (record.go) before anybody hears of it, or else refused, and until the
// donor's application is known to know. That the target's was told to activate the
// client it knows itself, and says so, whether it still has it or not. A
// member that was started anew does not know the epochs of its clients either;
// the contact tells those that will do.
//
// An application that ends takes its connections along, but not those that it has given
// away. The next one is told of them (away.go), so that it does not answer for them.
//
// docs/model has all this as a model, in which everything may be lost or end at
// any moment, and what is true of it none the less.
//
// # Contact
//
// The contact is the member whose daemon's address is registered at the home
// agent. Which one is agreed by epoch: a takeover takes the next one, and the
// later one wins, of equals the greater name. It begins without knowing whose
// clients are, and brings no connection to the wrong application meanwhile
// (unknown.go).
//
// # Many clients
//
// A member hands off many clients, or all of them, by itself (job.go): it asks the
// application for one after another, several at a time, and reports how far it is
// to the member where the command was given. While it is drained it takes no
// clients, and says so to the others; that lasts until it is undone, or until the
// daemon is started anew. New clients begin at the contact, drained or not.
package member
