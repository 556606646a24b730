// Package identity says who belongs to a cluster: its authority, the nodes'
// certificates, the list of members, and how another machine becomes one.
//
// # Theory of operation
//
// A node is who its certificate says (RFC 5280), a DNS name, signed by the
// cluster's authority. The authority is a key on the node on which `ds init` made
// the cluster, and nowhere else. A node's own key is made where the node is, and
// never leaves it: what travels is a request for a certificate (PKCS #10).
//
// All of it is in one directory, which belongs to the daemon's user:
//
//	ca.pem          the authorities that are believed
//	node.pem        key and certificate of this node
//	members.json    the list of members, signed by the authority
//	authority.pem   key and certificate of the authority; where ds init ran
//	tokens/         what ds token has made and nobody has used yet
//
// Key and certificate are in one file, so that they change together: files are
// replaced by renaming, and read anew ([Keeper]) when they have changed. A
// connection that is up goes on with what it began with.
//
// # Joining
//
//	new machine                                    authority
//	    │ ── TLS: "dsco-identity/1" ─────────────────► │ certificate, authority
//	 the hash in the token is that of the authority?   │
//	    │ ── token, request for a certificate ───────► │ token: known, not used, in time?
//	    │ ◄─ certificate, list of members, servers ─── │ the list has one more
//
// The token (`ds token`) has the authority's address and hash in it, and a secret
// of 128 bits of which the authority keeps a hash. It is good once, for an hour,
// unless it was made otherwise. Whoever has it can become a node.
//
// # List of members
//
// The list has a serial number and is signed as a whole. Of two the later counts.
// Nodes tell each other theirs when a connection between them begins, and what is
// new at once, so any member can pass it on and none can change it.
//
// A node that is not in it any more (`ds remove`) is none: members do not connect to it,
// refuse what it asks, and let it have the list, so that it knows.
//
// # Renewal and rotation
//
// A certificate is valid for 90 days. After two thirds of that the node makes a
// new key and asks the authority, as a member: it gets a certificate for its own
// name and for no other. `ds ca rotate` makes a new authority. The list, which the
// old one signs too, then has both; nodes believe both and get certificates of the
// new one. The old one vouches for the new (a cross certificate, which nodes send
// with theirs), so a node that was away meanwhile still understands the others.
// `ds ca retire` ends that.
package identity
