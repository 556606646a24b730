/*
 * The protocol of a handoff: applications and members (package daemon/member),
 * their sessions (package daemon/api) and the connections between members, with
 * everything that can happen to them. One client, N nodes, up to H handoffs.
 *
 *   donor's application  donor's member   target's member  target's application
 *         live               │                │                   nothing
 *          │ Prepare         │ Prepare        │ Expect
 *          ├────────────────►├───────────────►├─────────────────► arriving
 *          │        Prepared │       Prepared │          Expected    │
 *        frozen ◄────────────┤◄───────────────┤◄─────────────────────┤
 *          │ Transfer        │ Transfer       │ Offer                │
 *       in doubt ───────────►╪═══════════════►╪─────────────────► imports
 *          │                 │          taken │ Activate             │
 *          │                 │                ├────────── Take ───► live
 *          │            Done │           Done │         Activated    │
 *       nothing ◄────────────┤◄───────────────┤◄─────────────────────┤
 *          │ Settled         │ Settled        │
 *          ├────────────────►├───────────────►│ forgets
 *
 * The target's member does not wait for the import. It may overrule the application
 * as long as that has not taken the word that they share; then the donor has the
 * client again.
 *
 * README.md tells how this maps onto the code, and what the model leaves out.
 * Macros that are not defined here are mutations; README.md lists them.
 */

#ifndef N
#define N 2		/* nodes */
#endif
#ifndef FAULTY
#define FAULTY N	/* of them, and of the connections between them, something may happen to */
#endif
#ifndef H
#define H 2		/* handoffs */
#endif
#ifndef BREAKS
#define BREAKS 1	/* connections between members that break */
#endif
#ifndef RESTARTS
#define RESTARTS 1	/* daemons that end and start anew */
#endif
#ifndef CRASHES
#define CRASHES 1	/* applications that end and start anew */
#endif
#ifndef LATES
#define LATES 2		/* timeouts, and handoffs that the application calls off */
#endif
#ifndef FULLS
#define FULLS 0		/* records that cannot be written */
#endif
#ifndef HANGS
#define HANGS 0		/* applications that hang before they have taken the client */
#endif
#ifndef DOUBLES
#define DOUBLES 0	/* messages between members that come twice */
#endif
#ifndef CONTACT
#define CONTACT N	/* the node that is the contact; N: there is none, and no epochs */
#endif
#define ROOM 8		/* messages under way on a connection */

/* What there is to say, in sessions and between members. */
mtype:kind = {
	Prepare, Prepared, Transfer, Done, Abort, Query, Settled,
	Expect, Expected, Offer, Activate, Activated, Forget,
	Owners, Stale, Gone /* these have an epoch instead of a handoff */
};

/* The zero of each of the types below. */
#define none 0

mtype:conns = { live, frozen };	/* what an application has of the client */

/* How far a handoff is for the donor (handoff.go) and for the target (target.go);
 * what the target's daemon remembers of it. */
mtype:stage = { preparing, prepared, transferring, told };
mtype:offer = { proving, ready, activating };
mtype:record = { taken, activated };

/* What has become of the word of an offer, which is the ID at first: the application
 * has taken it, or the member has overruled that. */
mtype:word = { took, overruled };

/* ── State ─────────────────────────────────────────────────────────────── */

byte handoffs;			/* begun so far; their ids are 1, 2, ... */
byte from[H+1], to[H+1];

/* Of applications. */
mtype:conns app[N];
byte moving[N];			/* the handoff of which it is the donor */
mtype:stage phase[N];		/* preparing, transferring */
byte arriving[N];		/* the handoff of which it is the target: it expects the client, or has it, silent */
bit alive[N];			/* it was attached, and has not ended since */
bit hung[N];			/* it does nothing any more, as long as its daemon lives */
bit missed[N*N];		/* of another node it has expected the client and not got it, the last time */
#ifdef MISSED_FROM_OFFER
bit offered[N];
#endif

/* Of members. */
bit owns[N];			/* Member.clients has the client */
bit idle[N];			/* whose connections are lost */
mtype:stage out[H+1];		/* Member.outgoing, at the donor */
bit orphan[H+1];		/* whose application has ended */
bit donated[H+1];		/* recorded by the donor; outlives the daemon */
byte incoming[N];		/* Member.incoming, at the target: the handoff */
mtype:offer stage[N];		/* and how far it is */
mtype:record record[H+1];	/* Member.records, at the target */
mtype:record disk[H+1];		/* what outlives the daemon */
bit up[N*N];			/* Member.up */
#if DOUBLES && !defined(PREPARE_TWICE)
byte heard[N*N];		/* Member.lastPrepare: handoffs of another member */
#define again(n, p) (h == heard[link(n, p)])
#define hears(n, p, id) heard[link(n, p)] = id
#else
#define again(n, p) false
#define hears(n, p, id)
#endif

/* What a member and its application share. It does not outlive the daemon: a new one
 * has not got it, but an application may still take what is in it. */
mtype:word word[H+1];

/* Epochs, and what the contact knows (owner.go). */
byte epoch[N];			/* of the client, 0: not known */
byte epochThere[H+1];		/* that the target will have, as given away */
byte owner, ownerEpoch;		/* Member.owners, at the contact: 1 + the node */

/* Of what connects them. */
#define link(n, m) ((n)*N + (m))
bit wire[N*N];			/* there is a connection, both ways */
chan peer[N*N] = [ROOM] of { mtype:kind, byte, bit };	/* handoff, whether it is an error */

mtype:session = { attached, daemonEnded, applicationEnded };
mtype:session session[N];
chan toMember[N] = [ROOM] of { mtype:kind, byte, bit };
chan toApp[N] = [ROOM] of { mtype:kind, byte, bit };

/* What has happened so far. */
byte breaks, restarts, crashes, lates, fulls, hangs, doubles;
bit lost;			/* an application has ended that had the client, or of which nobody knows any more whether it had */
bit ended[H+1];			/* the application has ended for which the client was recorded as taken */
bit wentLive[H+1], failed[H+1];	/* how handoffs were decided */

/* Of a single step. */
hidden byte h, i, m, granted;
hidden byte e, found, kept;
hidden mtype:kind k;

/* ── Messages ──────────────────────────────────────────────────────────── */

inline sendPeer(src, dst, what, hid, bad) {
	if
	:: up[link(src, dst)] && wire[link(src, dst)] ->
		assert(nfull(peer[link(src, dst)]));
		printf("member %d to member %d: %e %d error %d\n", src, dst, what, hid, bad);
		peer[link(src, dst)] ! what, hid, bad
	:: else /* not connected, or not any more: it is lost */
	fi
}

inline sendApp(node, what, hid, bad) {
	if
	:: session[node] == attached ->
		assert(nfull(toApp[node]));
		printf("member %d to application: %e %d error %d\n", node, what, hid, bad);
		toApp[node] ! what, hid, bad
	:: else
	fi
}

inline sendMember(node, what, hid, bad) {
	if
	:: session[node] == attached ->
		assert(nfull(toMember[node]));
		printf("application %d to member: %e %d error %d\n", node, what, hid, bad);
		toMember[node] ! what, hid, bad
	:: else
	fi
}

inline drain(c) {
	do
	:: nempty(c) -> c ? k, _, _
	:: empty(c) -> break
	od
}

/* ── What must be true at every step ───────────────────────────────────── */

inline goesLive(n) {
	printf("application %d is live\n", n);
	app[n] = live;
	for (i : 0 .. N-1) {
		assert(i == n || app[i] != live) /* never two owners */
	}
}

inline succeeds(id) { assert(!failed[id]); wentLive[id] = 1 }	/* decided once */
inline fails(id)    { assert(!wentLive[id]); failed[id] = 1 }

#define undecided(id) (!wentLive[id] && !failed[id])

/* ── Applications ──────────────────────────────────────────────────────── */

inline thaw(n) {
	printf("application %d goes on\n", n);
	if
	:: app[n] == frozen -> goesLive(n)
	:: else -> assert(app[n] == live)
	fi;
	moving[n] = 0; phase[n] = none
}

inline discard(n) {
	assert(app[n] == frozen);
	app[n] = none; moving[n] = 0; phase[n] = none
}

/* TAKE is whether the application's compare-and-swap succeeds. */
#ifdef LIVE_UNASKED
#define TAKE(id) true
#else
#define TAKE(id) (word[id] != overruled)
#endif

inline takes(n) {
	word[h] = took; succeeds(h);
	missed[link(n, from[h])] = 0; arriving[n] = 0;
	goesLive(n);
	sendMember(n, Activated, h, 0)
}

inline misses(n) {
#ifdef MISSED_FROM_OFFER
	missed[link(n, from[arriving[n]])] = offered[n]; offered[n] = 0;
#else
	missed[link(n, from[arriving[n]])] = 1;
#endif
	arriving[n] = 0
}

inline fromMember(n) {
	toApp[n] ? k, h, e;
	if
	:: k == Prepared && h == moving[n] && phase[n] == preparing ->
		if
		:: e -> thaw(n)
		:: else -> app[n] = frozen; phase[n] = transferring; sendMember(n, Transfer, h, 0)
		fi
	:: k == Done ->
		if
		:: h == moving[n] && phase[n] == transferring && e  -> fails(h); thaw(n)
		:: h == moving[n] && phase[n] == transferring && !e -> discard(n)
		:: else /* it knows already */
		fi;
		if
		:: !e -> sendMember(n, Settled, h, 0)
		:: else
		fi
	:: k == Expect ->
		if
		:: phase[n] == transferring -> discard(n) /* who hands the client off had it */
		:: else
		fi;
		if
		:: app[n] == none && !arriving[n] -> arriving[n] = h; sendMember(n, Expected, h, 0)
		:: lates < LATES -> lates++; sendMember(n, Expected, h, 1) /* for whatever reason */
		:: app[n] != none || arriving[n] -> sendMember(n, Expected, h, 1)
		fi
#ifdef MISSED_FROM_OFFER
	:: k == Offer && arriving[n] == h -> offered[n] = 1
#else
	:: k == Offer && arriving[n] == h /* imports; whether that has failed it says later */
#endif
	:: k == Activate && arriving[n] == h ->
		if
		:: TAKE(h) -> takes(n)
#ifdef FAILED_NOT_MISSED
		:: true -> arriving[n] = 0; sendMember(n, Activated, h, 1)
#else
		:: true -> misses(n); sendMember(n, Activated, h, 1) /* overruled, or it could not import */
#endif
		fi
	:: k == Forget && arriving[n] == h -> misses(n)
	:: else
	fi
}

/* ── Members ───────────────────────────────────────────────────────────── */

#define early(id) (out[id] == preparing || out[id] == prepared)

/* remember is what is recorded. It may not come to the disk; or it does, and the
 * daemon is told that it has not. */
inline remember(id, what) {
	record[id] = what;
	if
	:: disk[id] = what; kept = 1
	:: fulls < FULLS -> fulls++; kept = 0
	:: fulls < FULLS -> fulls++; disk[id] = what; kept = 0
	fi;
	ended[id] = ended[id] && disk[id] == taken
}

/* survived decides what was taken before this daemon was started, now that it is
 * known whether the application that was there has activated it. */
inline survived(n, has) {
	lost = lost || ended[h] && undecided(h);
	if
	:: has -> remember(h, activated); sendPeer(n, from[h], Done, h, 0)
	:: else -> remember(h, none); sendPeer(n, from[h], Done, h, 1)
	fi
}

/* claim is, at the contact, that a member says that it owns the client. */
inline claim(who, with) {
	if
	:: owner == none -> owner = 1 + who; ownerEpoch = (with -> with : 1); granted = ownerEpoch
	:: owner == 1 + who -> ownerEpoch = (with > ownerEpoch -> with : ownerEpoch); granted = ownerEpoch
	:: owner && owner != 1 + who && with > ownerEpoch -> owner = 1 + who; ownerEpoch = with; granted = with
	:: owner && owner != 1 + who && with == 0 && who != CONTACT -> granted = ownerEpoch + 1
	:: owner && owner != 1 + who && with <= ownerEpoch && (with || who == CONTACT) ->
		if
		:: with && (owner == 1 + CONTACT || up[link(CONTACT % N, (owner - 1) % N)]) ->
			granted = with /* refused: the owner is there, and later */
		:: else -> granted = ownerEpoch + 1; owner = 1 + who; ownerEpoch = granted
		fi
	fi
}

inline tellContact(n) {
	if
	:: CONTACT == n -> claim(n, epoch[n]); epoch[n] = granted
	:: CONTACT != n && CONTACT < N -> sendPeer(n, CONTACT % N, Owners, epoch[n], 0)
	:: CONTACT >= N
	fi
}

/* claims answers a claim when the epoch is another one. */
inline claims(n, p) {
	claim(p, h);
	if
	:: granted != h -> sendPeer(n, p, Stale, granted, 0)
	:: granted == h
	fi
}

inline stale(n) {
	if
	:: owns[n] && epoch[n] == 0 && !idle[n] -> epoch[n] = h; tellContact(n)
	:: owns[n] && !(epoch[n] == 0 && !idle[n]) -> epoch[n] = (h > epoch[n] -> h : epoch[n])
	:: !owns[n] /* it has let go meanwhile */
	fi
}

inline disown(n) {
	owns[n] = 0; idle[n] = 0; epoch[n] = 0
}

inline forget(who, with) {
	if
	:: owner == 1 + who && (ownerEpoch <= with || with == 0) -> owner = none; ownerEpoch = 0
	:: !(owner == 1 + who && (ownerEpoch <= with || with == 0))
	fi
}

/* retire lets the client go. */
inline retire(n) {
	if
	:: CONTACT == n -> forget(n, epoch[n])
	:: CONTACT != n && CONTACT < N -> sendPeer(n, CONTACT % N, Gone, epoch[n], 0)
	:: CONTACT >= N
	fi;
	disown(n)
}

/* restore takes up what was recorded by a daemon that has ended with its application. */
inline restore(n) {
	out[h] = transferring; orphan[h] = 1;
	sendPeer(n, to[h], Query, h, 0)
}

/* hello begins a session: the application tells which clients it has, and which
 * handoffs it is in doubt about, if it was attached before. */
inline hello(n, before) {
	found = app[n] != none && phase[n] != transferring;
	if
	:: found && owns[n] -> idle[n] = 0
#ifdef GUESS_EPOCH
	:: found && !owns[n] -> owns[n] = 1; epoch[n] = 1; tellContact(n)
#else
	:: found && !owns[n] -> owns[n] = 1; tellContact(n)
#endif
	:: !found
	fi;
	for (h : 1 .. H) {
		if
		:: from[h] == n && to[h] != n && donated[h] && out[h] == none && !before -> restore(n)
		:: from[h] == n && to[h] != n && donated[h] && out[h] == none && before && !(moving[n] == h && phase[n] == transferring) -> donated[h] = 0
		:: else
		fi;
		if
#ifndef NO_DOUBTS
		:: from[h] == n && to[h] != n && moving[n] == h && phase[n] == transferring && out[h] == none ->
			out[h] = transferring; donated[h] = 1;
			sendPeer(n, to[h], Query, h, 0)
#endif
		:: to[h] == n && from[h] != n && record[h] == taken && incoming[n] != h ->
#ifdef MISSED_UNTOLD
			survived(n, !before || found)
#else
			survived(n, !before || found || !missed[link(n, from[h])])
#endif
		:: else
		fi
	}
}

inline drop(n) {
	sendApp(n, Forget, incoming[n], 0);
	incoming[n] = 0; stage[n] = none
}

inline refuse(n) {
	k = (stage[n] == proving -> Prepared : Done);
	sendPeer(n, from[incoming[n]], k, incoming[n], 1);
	drop(n)
}

inline take(n) {
	remember(h, taken);
	ended[h] = session[n] == applicationEnded; /* and it is not known here yet */
	sendApp(n, Offer, h, 0);
#ifdef TAKE_UNRECORDED
	kept = 1;
#endif
	stage[n] = activating;
	if
	:: kept ->
		owns[n] = 1; idle[n] = 0;
		epoch[n] = epochThere[h];
		sendApp(n, Activate, h, 0);
#ifdef DONE_AT_ACTIVATE
		sendPeer(n, from[h], Done, h, 0)
#endif
	:: else -> word[h] = overruled; remember(h, none); refuse(n)
	fi
}

inline complete(n) {
	remember(incoming[n], activated);
	tellContact(n);
	sendPeer(n, from[incoming[n]], Done, incoming[n], 0);
	incoming[n] = 0; stage[n] = none
}

/* giveBack is that the application has not taken the client and never will. */
inline giveBack(n) {
	disown(n);
	remember(incoming[n], none);
	refuse(n)
}

/* overrule gives the client back if the member's compare-and-swap succeeds. */
inline overrule(n) {
	if
#ifdef OVERRULE_BLINDLY
	:: true -> giveBack(n)
#elif defined(TAKE_AFTER_ANSWER)
	:: word[incoming[n]] == none -> giveBack(n)
#else
	:: word[incoming[n]] == none -> word[incoming[n]] = overruled; giveBack(n)
#endif
	:: else /* it is live, and says so yet, unless it has ended */
	fi
}

inline transfer(n) {
	out[h] = transferring;
	epochThere[h] = (epoch[n] -> epoch[n] + 1 : 0);
	disown(n);
	sendPeer(n, to[h], Transfer, h, 0)
}

inline fromApp(n) {
	toMember[n] ? k, h, e;
	if
	:: k == Prepare ->
		found = owns[n] && up[link(n, to[h])];
		for (i : 1 .. H) {
			found = found && !(from[i] == n && early(i))
		}
		if
		:: found -> out[h] = preparing; donated[h] = 1; sendPeer(n, to[h], Prepare, h, 0)
		:: else -> sendApp(n, Prepared, h, 1)
		fi
	:: k == Transfer ->
		if
		:: out[h] == prepared -> transfer(n)
		:: else -> sendApp(n, Done, h, 1)
		fi
	:: k == Abort && early(h) -> out[h] = none; donated[h] = 0; sendPeer(n, to[h], Abort, h, 0)
	:: k == Abort && out[h] == transferring -> sendPeer(n, to[h], Query, h, 0)
	:: k == Settled && out[h] == told -> out[h] = none; sendPeer(n, to[h], Settled, h, 0)
	:: k == Expected && incoming[n] == h && stage[n] == proving ->
		if
		:: e -> refuse(n)
		:: else -> stage[n] = ready; sendPeer(n, from[h], Prepared, h, 0)
		fi
	:: k == Activated && incoming[n] == h && stage[n] == activating ->
		if
		:: e -> giveBack(n)
		:: else -> complete(n)
		fi
	:: else
	fi
}

/* appGone ends a session. */
inline appGone(n) {
	printf("member %d: its application has ended\n", n);
	drain(toMember[n]);
	session[n] = none;
	for (h : 1 .. H) {
		if
		:: from[h] == n && to[h] != n && early(h) -> out[h] = none; donated[h] = 0; sendPeer(n, to[h], Abort, h, 0)
		:: from[h] == n && to[h] != n && out[h] == told -> out[h] = none; sendPeer(n, to[h], Settled, h, 0)
		:: from[h] == n && to[h] != n && out[h] == transferring -> orphan[h] = 1
		:: else
		fi
	}
	if
	:: incoming[n] && stage[n] != activating -> refuse(n)
#ifndef NO_OVERRULE_AT_END
	:: incoming[n] && stage[n] == activating -> overrule(n)
#endif
	:: else
	fi;
	if
	:: incoming[n] -> complete(n) /* its connections are lost */
	:: else
	fi;
	idle[n] = owns[n]
}

/* fail ends a handoff before Transfer. */
inline fail(n, id) {
	if
	:: out[id] == preparing -> sendApp(n, Prepared, id, 1)
	:: else
	fi;
	out[id] = none; donated[id] = 0
}

inline done(n) {
	donated[h] = 0;
	if
	:: e && orphan[h] -> out[h] = none /* nothing is left of it */
	:: e && !orphan[h] ->
		out[h] = none;
		owns[n] = 1; idle[n] = 0;
#ifdef SAME_EPOCH
		epoch[n] = epochThere[h];
#else
		epoch[n] = (epochThere[h] -> epochThere[h] + 1 : 0);
#endif
		tellContact(n);
		sendApp(n, Done, h, 1)
#ifdef SETTLE_AT_ONCE
	:: !e && !orphan[h] -> out[h] = none; sendApp(n, Done, h, 0); sendPeer(n, to[h], Settled, h, 0)
#else
	:: !e && !orphan[h] -> out[h] = told; sendApp(n, Done, h, 0)
#endif
	:: !e && orphan[h] -> out[h] = none; sendPeer(n, to[h], Settled, h, 0)
	fi;
	orphan[h] = 0
}

/* judge answers a donor that asks, or has given away what is not expected here. */
inline judge(n) {
	if
#ifdef FORGET_ACTIVATED
	:: record[h] == activated -> sendPeer(n, from[h], Done, h, 1)
#else
	:: record[h] == activated -> sendPeer(n, from[h], Done, h, 0)
#endif
	:: record[h] == taken && incoming[n] == h -> overrule(n)
	:: record[h] == taken && incoming[n] != h /* the application will say */
	:: record[h] == none ->
		if
		:: incoming[n] == h -> drop(n)
		:: else
		fi;
		sendPeer(n, from[h], Done, h, 1)
	fi
}

inline fromPeer(n, p) {
	if
	:: peer[link(p, n)] ? k, h, e
	:: doubles < DOUBLES -> doubles++; peer[link(p, n)] ? <k, h, e> /* and once more, later */
	fi;
	if
	/* as target */
	:: k == Prepare && again(n, p) /* it has come before */
	:: k == Prepare && !again(n, p) ->
		hears(n, p, h);
		if
		:: session[n] != attached || owns[n] -> sendPeer(n, p, Prepared, h, 1)
		:: else ->
			if
			:: incoming[n] -> assert(stage[n] != activating); drop(n)
			:: else
			fi;
			incoming[n] = h; stage[n] = proving;
			sendApp(n, Expect, h, 0)
		fi
	:: k == Transfer && incoming[n] == h && stage[n] == ready -> take(n)
	:: k == Transfer && !(incoming[n] == h && stage[n] == ready) || k == Query -> judge(n)
	:: k == Abort && incoming[n] == h && stage[n] != activating -> drop(n)
	:: k == Settled -> remember(h, none)
	/* as contact, and from it */
	:: k == Owners -> claims(n, p)
	:: k == Gone -> forget(p, h)
	:: k == Stale -> stale(n)
	/* as donor */
	:: k == Prepared && out[h] == preparing ->
		if
		:: e -> fail(n, h)
		:: else -> out[h] = prepared; sendApp(n, Prepared, h, 0)
		fi
	:: k == Done && early(h) && e -> fail(n, h)
	:: k == Done && out[h] == transferring -> done(n)
	:: k == Done && out[h] == none && !e && session[n] == attached -> sendPeer(n, p, Settled, h, 0) /* nobody is in doubt */
	:: else
	fi
}

inline peerUp(n, p) {
	printf("member %d: %d is connected\n", n, p);
	up[link(n, p)] = 1;
	hears(n, p, none);
	for (h : 1 .. H) {
		if
#ifndef NO_QUERY
		:: from[h] == n && to[h] == p && out[h] == transferring -> sendPeer(n, p, Query, h, 0)
#endif
		:: to[h] == n && from[h] == p && record[h] == activated -> sendPeer(n, p, Done, h, 0) /* remind */
		:: else
		fi
	}
	if
	:: owns[n] && p == CONTACT -> tellContact(n)
	:: else
	fi
}

inline peerDown(n, p) {
	printf("member %d: %d is not connected\n", n, p);
	up[link(n, p)] = 0;
	for (h : 1 .. H) {
		if
		:: from[h] == n && to[h] == p && early(h) -> fail(n, h)
		:: else
		fi
	}
	if
	:: incoming[n] && from[incoming[n]] == p && stage[n] != activating -> drop(n)
	:: else
	fi
}

inline cut(src, dst) {
	wire[link(src, dst)] = 0; wire[link(dst, src)] = 0;
	drain(peer[link(src, dst)]);
	drain(peer[link(dst, src)])
}

/* restart: the daemon ends and is started anew. The application, if there is
 * one, finds out in its own time. */
inline restart(n) {
	disown(n);
	incoming[n] = 0; stage[n] = none;
	if
	:: n == CONTACT -> owner = none; ownerEpoch = 0
	:: else
	fi;
	for (h : 1 .. H) {
		if
		:: from[h] == n && to[h] != n ->
			out[h] = none; orphan[h] = 0; epochThere[h] = 0;
			if
#ifdef ASK_TOO_SOON
			:: donated[h] -> restore(n)
#else
			:: donated[h] && !alive[n] -> restore(n)
#endif
			:: else
			fi
#ifdef NO_RECORDS
		:: to[h] == n && from[h] != n -> record[h] = none; disk[h] = none
#else
		:: to[h] == n && from[h] != n && disk[h] == taken && !alive[n] ->
			lost = lost || ended[h] && undecided(h);
			remember(h, activated)
		:: to[h] == n && from[h] != n && !(disk[h] == taken && !alive[n]) -> record[h] = disk[h]
#endif
		:: else
		fi
	}
	for (m : 0 .. N-1) {
		if
		:: m != n -> up[link(n, m)] = 0; cut(n, m)
		:: else
		fi
	}
	drain(toMember[n]);
	if
	:: session[n] == attached -> session[n] = daemonEnded
	:: session[n] == applicationEnded -> session[n] = none
	:: else
	fi
}

/* ── Whatever may happen ───────────────────────────────────────────────── */

#define stuck(n) (hung[n] && session[n] == attached)

proctype application(byte n) {
end:	do
	:: atomic {	/* hands the client off, to any other node */
		app[n] == live && session[n] == attached && !moving[n] && handoffs < H ->
		m = (n + 1) % N;
		if
		:: N > 2 -> m = (n + 2) % N
		:: true
		fi;
		handoffs++;
		from[handoffs] = n; to[handoffs] = m;
		moving[n] = handoffs; phase[n] = preparing;
		sendMember(n, Prepare, handoffs, 0)
	   }
	:: atomic { nempty(toApp[n]) && !stuck(n) -> fromMember(n) }
	:: atomic {	/* calls it off, or asks for that */
		session[n] == attached && moving[n] && lates < LATES ->
		lates++;
		sendMember(n, Abort, moving[n], 0);
		if
		:: phase[n] == preparing -> thaw(n)
		:: else
		fi
	   }
	:: atomic {	/* finds out that the daemon has gone */
		session[n] == daemonEnded ->
		drain(toApp[n]);
		session[n] = none; hung[n] = 0;
		if
		:: arriving[n] -> misses(n) /* nobody has told it to activate it, and nobody will */
		:: else
		fi;
		if
		:: moving[n] && phase[n] == preparing -> thaw(n)
		:: else
		fi
	   }
	:: atomic { session[n] == none -> session[n] = attached; printf("application %d attaches\n", n); hello(n, alive[n]); alive[n] = 1 }
	:: atomic { arriving[n] && !hung[n] && n < FAULTY && hangs < HANGS -> hangs++; printf("application %d hangs\n", n); hung[n] = 1 }
	:: atomic {	/* ends, and all it has */
		alive[n] && n < FAULTY && crashes < CRASHES ->
		crashes++;
		printf("application %d ends\n", n);
		alive[n] = 0;
		lost = lost || app[n] != none;
		for (i : 1 .. H) {
			ended[i] = ended[i] || to[i] == n && from[i] != n && disk[i] == taken
		}
		for (i : 0 .. N-1) {
			missed[link(n, i)] = 0
		}
		app[n] = none; moving[n] = 0; phase[n] = none; arriving[n] = 0; hung[n] = 0;
		drain(toApp[n]);
		if
		:: session[n] == attached -> session[n] = applicationEnded
		:: session[n] == daemonEnded -> session[n] = none
		:: else
		fi
	   }
	od
}

/* sure is that nothing else can end an offer. */
#ifdef NO_OVERRULE_WHEN_LATE
#define sure(n) (stuck(n) && stage[n] == proving)
#else
#define sure(n) (stuck(n) && stage[n] != ready)
#endif

proctype member(byte n) {
end:	do
	:: atomic { nempty(toMember[n]) -> fromApp(n) }
	:: atomic { session[n] == applicationEnded -> appGone(n) }
	:: atomic { idle[n] -> printf("member %d lets the client go\n", n); retire(n) }
	:: atomic {	/* an offer has taken too long */
		incoming[n] && (lates < LATES || sure(n)) ->
		if
		:: !sure(n) -> lates++
		:: else
		fi;
		if
		:: stage[n] != activating -> refuse(n)
		:: else -> overrule(n)
		fi
	   }
	:: atomic { n < FAULTY && restarts < RESTARTS -> restarts++; printf("daemon %d is started anew\n", n); restart(n) }
	od
}

/* From a to b, and what a notices. */
proctype connection(byte a, b) {
end:	do
	:: atomic { up[link(b, a)] && nempty(peer[link(a, b)]) -> fromPeer(b, a) }
	:: atomic { a < b && wire[link(a, b)] && b < FAULTY && breaks < BREAKS -> breaks++; printf("%d and %d are disconnected\n", a, b); cut(a, b) }
	:: atomic { up[link(a, b)] && !wire[link(a, b)] -> peerDown(a, b) }
	:: atomic {
		a < b && !up[link(a, b)] && !up[link(b, a)] && !wire[link(a, b)] ->
		wire[link(a, b)] = 1; wire[link(b, a)] = 1
	   }
	:: atomic { !up[link(a, b)] && wire[link(a, b)] -> peerUp(a, b) }
	od
}

/* late is that a donor has waited for too long. */
proctype late(byte id) {
end:	do
	:: atomic {
		early(id) && lates < LATES ->
		lates++;
		sendPeer(from[id], to[id], Abort, id, 0);
		fail(from[id], id)
	   }
	:: atomic {
		out[id] == transferring && lates < LATES ->
		lates++;
#ifdef THAW_WHEN_LATE
		h = id; e = 1; done(from[id])
#else
		sendPeer(from[id], to[id], Query, id, 0)
#endif
	   }
	od
}

/* ── What must be true when all is quiet ───────────────────────────────── */

proctype quiet() {
	atomic {
		timeout ->
		m = 0;
		for (i : 0 .. N-1) {
			if
			:: app[i] == live -> m++
			:: else
			fi;
			/* whoever knows something knows the truth */
			assert(owns[i] == (app[i] == live));
			assert(!moving[i] && (!arriving[i] || hung[i]) && !incoming[i])
		}
		assert(m == 1 || lost && m == 0); /* never none for ever */
		for (i : 0 .. N-1) {
			/* what comes through the tunnel is sent to the owner */
			assert(CONTACT >= N || app[i] != live || owner == 1 + i)
		}
		for (i : 1 .. H) {
			assert(out[i] == none || out[i] == told && hung[from[i]])
		}
	}
}

init {
	atomic {
		app[0] = live; owns[0] = 1;
		if
		:: CONTACT < N -> epoch[0] = 1; owner = 1; ownerEpoch = 1
		:: CONTACT >= N
		fi;
		for (i : 0 .. N-1) {
			alive[i] = 1; session[i] = attached;
			for (m : 0 .. N-1) {
				wire[link(i, m)] = i != m; up[link(i, m)] = i != m
			}
		}
		for (i : 0 .. N-1) {
			run application(i);
			run member(i);
			for (m : 0 .. N-1) {
				if
				:: m != i -> run connection(i, m)
				:: else
				fi
			}
		}
		for (i : 1 .. H) {
			run late(i)
		}
		run quiet()
	}
}
