// Package forward has the kernel forward what is in tunnels, instead of a daemon
// that takes each packet out of a raw socket and sends it by another one. Then no
// packet is copied, and super-packets stay whole.
//
// # Theory of operation
//
// There are three things that are done to a packet of RFC 2473 here, and the
// kernel can do each of them without a tunnel interface:
//
//   - A relay sends on what comes in a tunnel, in another tunnel. All that changes
//     is the addresses and hop limits, and a rule of nftables can write those, from
//     a map of clients and owners. Whoever is not in the map is for the daemon: the
//     packet goes to its socket, as it came.
//   - The end of a tunnel takes the outer header off. A route with the action
//     End.DX6 does (RFC 8986 section 4.4). But what comes to a local address never
//     gets to a route. So a rule checks all that there is to check, and then
//     writes another destination: [Exit], which nobody else can send to.
//   - The beginning of a tunnel is a route with H.Encaps.Red and one segment, which
//     needs no routing header (RFC 8986 section 5.2): IPv6 in IPv6, and nothing
//     else. Such routes are those of who uses this package.
//
// What is let through is what the machines of package mobility would send on:
// their tests hold for it. All else, in particular whatever is not TCP or UDP, with
// extension headers or in fragments, with a hop limit that is used up, or met by
// congestion that the inner header has to be told of, goes to the daemon as before.
//
// # Lifetime
//
// The rules are in a table that belongs to the process (NFT_TABLE_F_OWNER): it goes
// with it, also when that is killed, and nobody can change it. A relay that nobody
// tells of new owners must not go on. If a change fails the table is given up, and
// the daemon gets all packets: a map that is out of date would be worse.
//
// # Order
//
// A change of the map takes effect between two packets. Packets of a client that
// came before went to its old owner, all others go to the new one.
package forward
