package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Rules are packet filter rules, in chains of their own. The zero value has
// none. They are made by [NodeRules], [HomeAgentRules] and
// [CorrespondentRules], which change nothing.
type Rules struct {
	v6, v4 []chain
	err    error
}

// A chain is a chain of the raw table. In its rules $NUM stands for the
// number of the queue, $CHAIN for the name that those of the daemon begin with.
type chain struct {
	suffix string // of its name
	first  bool   // PREROUTING leads to it; otherwise another of ours does
	rules  []string
}

// Targets that queue a packet. Without a listener, the first drops it and
// the second lets it go on.
const (
	targetQueue  = "-j NFQUEUE --queue-num $NUM"
	targetBypass = "-j NFQUEUE --queue-num $NUM --queue-bypass"
)

// NodeServer is a distributed server on a node.
type NodeServer struct {
	Address netip.Addr // the distributed server address
	CareOf  netip.Addr // this node's care-of address for it
	TUN     string     // name of the application's interface; "": there is none

	// Peers are the care-of addresses of the other nodes, to which the
	// application may forward what has come too late for a client.
	Peers []netip.Addr
}

// NodeRules are those of a node, whose daemon has an address of its own.
//
// Queued: mobility headers and ICMPv6 errors to a care-of address, before they
// are forwarded to the application; any error is, whatever it quotes: there are
// few, and [Classify] tells. To the daemon's address, mobility headers, and errors
// that quote one or a tunnel.
//
// Dropped: what an application may not send. It may send TCP, UDP and ICMPv6
// from its own two addresses; tunnels from the care-of address whose inner packet
// is from the distributed server address; and, to the other nodes, such whose inner
// packet is to it. So it can neither speak for others nor sign for the daemon. Of
// IPv4 it may send nothing.
func NodeRules(daemon netip.Addr, servers []NodeServer) Rules {
	if err := checkAddr("daemon's address", daemon); err != nil {
		return Rules{err: err}
	}
	main := chain{first: true}
	r := Rules{}
	errorsTo := errorChain("-err", "")
	tunnelErrors := errorChain("-own", quotes(41, 44, 135))
	tun4 := chain{first: true}
	var tuns []chain
	for i, s := range servers {
		if r.err = errors.Join(checkAddr("server address", s.Address), checkAddr("care-of address", s.CareOf)); r.err != nil {
			return r
		}
		for _, p := range s.Peers {
			if r.err = checkAddr("care-of address", p); r.err != nil {
				return r
			}
		}
		if s.TUN != "" {
			if r.err = checkInterface(s.TUN); r.err != nil {
				return r
			}
			tun := tunChain(fmt.Sprint("-", i+1), s)
			main.rules = append(main.rules, fmt.Sprintf("-i %s -j $CHAIN%s", s.TUN, tun.suffix))
			tun4.rules = append(tun4.rules, fmt.Sprintf("-i %s -j DROP", s.TUN))
			tuns = append(tuns, tun)
		}
	}
	for _, s := range servers {
		main.rules = append(main.rules,
			fmt.Sprintf("-d %s -p mh %s", s.CareOf, targetQueue),
			fmt.Sprintf("-d %s -p ipv6-icmp -j $CHAIN%s", s.CareOf, errorsTo.suffix))
	}
	if len(servers) == 0 {
		return r
	}
	main.rules = append(main.rules,
		fmt.Sprintf("-d %s -p mh %s", daemon, targetQueue),
		fmt.Sprintf("-d %s -p ipv6-icmp -j $CHAIN%s", daemon, tunnelErrors.suffix))
	r.v6 = append([]chain{main, errorsTo, tunnelErrors}, tuns...)
	if len(tuns) > 0 {
		r.v4 = []chain{tun4}
	}
	return r
}

// tunChain drops what the application of s may not send. What it may is listed,
// not what it may not: behind extension headers or in fragments there would be
// ways around. The first rule takes the data of route optimised clients.
func tunChain(suffix string, s NodeServer) chain {
	c := chain{suffix: suffix}
	for _, src := range []netip.Addr{s.CareOf, s.Address} {
		for _, proto := range []string{"tcp", "udp", "ipv6-icmp"} {
			c.rules = append(c.rules, fmt.Sprintf("-s %s -p %s -j RETURN", src, proto))
		}
	}
	// The header chain of the outer packet is one step long, so that the inner
	// header is where it is looked for.
	c.rules = append(c.rules, fmt.Sprintf(`-s %s -m u32 --u32 "%s" -j RETURN`, s.CareOf, innerAddress(8, s.Address)))
	for _, p := range s.Peers {
		c.rules = append(c.rules, fmt.Sprintf(`-s %s -d %s -m u32 --u32 "%s" -j RETURN`, s.CareOf, p, innerAddress(24, s.Address)))
	}
	c.rules = append(c.rules, "-j DROP")
	return c
}

// innerAddress is the u32 test that a packet is a tunnel's, and that the inner
// header has the address at an offset.
func innerAddress(at int, addr netip.Addr) string {
	a := addr.As16()
	tests := []string{nextHeader(0, 41), nextHeader(tunnelLen, 6, 17, 58, 44)}
	for i := range 4 {
		tests = append(tests, fmt.Sprintf("%d=%#x", tunnelLen+at+4*i, binary.BigEndian.Uint32(a[4*i:])))
	}
	return strings.Join(tests, "&&")
}

const tunnelLen = 40 // of the header of a tunnel

// nextHeader is the u32 test that the IPv6 header at an offset has one of the
// protocols as its next header, octet 6.
func nextHeader(at int, protocols ...int) string {
	var values []string
	for _, p := range protocols {
		values = append(values, fmt.Sprintf("%#x", p))
	}
	return fmt.Sprintf("%d>>8&0xff=%s", at+4, strings.Join(values, ","))
}

// errorChain queues ICMPv6 errors that pass a u32 test ("": all). They go on
// when nobody listens.
func errorChain(suffix, test string) chain {
	if test != "" {
		test = fmt.Sprintf(`-m u32 --u32 "%s" `, test)
	}
	c := chain{suffix: suffix}
	for kind := 1; kind <= 4; kind++ {
		c.rules = append(c.rules, fmt.Sprintf("-p ipv6-icmp -m icmp6 --icmpv6-type %d %s%s", kind, test, targetBypass))
	}
	return c
}

// quotes is the u32 test that an ICMPv6 error is about a packet whose IPv6 header
// has one of the protocols as its next header. It looks at errors without
// extension headers: others are not made.
func quotes(protocols ...int) string {
	return nextHeader(0, 58) + "&&" + nextHeader(40+8, protocols...)
}

// HomeAgentRules are those of a home agent with an address and prefixes of home
// links. They queue mobility headers and Mobile Prefix Solicitations to the
// address, with Home Address option or without, Home Agent Address Discovery
// Requests to the prefixes (they go to an anycast address in one), and ICMPv6
// errors that quote a tunnel, a fragment of one, or a mobility header.
func HomeAgentRules(addr netip.Addr, prefixes []netip.Prefix) Rules {
	if err := checkAddr("home agent address", addr); err != nil {
		return Rules{err: err}
	}
	errorsTo := errorChain("-err", quotes(41, 44, 135))
	main := chain{first: true, rules: []string{
		fmt.Sprintf("-d %s -p mh %s", addr, targetQueue),
		fmt.Sprintf("-d %s -p ipv6-icmp -m icmp6 --icmpv6-type 146 %s", addr, targetBypass),
		fmt.Sprintf("-d %s -p ipv6-icmp -j $CHAIN%s", addr, errorsTo.suffix),
	}}
	for _, p := range prefixes {
		if err := checkPrefix(p); err != nil {
			return Rules{err: err}
		}
		main.rules = append(main.rules,
			fmt.Sprintf("-d %s -p ipv6-icmp -m icmp6 --icmpv6-type 144 %s", p.Masked(), targetBypass))
	}
	return Rules{v6: []chain{main, errorsTo}}
}

// CorrespondentRules are those of a correspondent. They queue mobility headers
// and packets with a destination options header to the addresses (none: all of
// this host's), and ICMPv6 errors that quote a routing header.
//
// What this host sends to home addresses takes a route to a TUN for each. Rules
// would cost every packet a comparison for each, and the kernel cuts super-packets
// behind a queue: it would compute their checksums with the care-of address.
func CorrespondentRules(addrs []netip.Addr) Rules {
	to := []string{"-m addrtype --dst-type LOCAL "}
	if len(addrs) > 0 {
		to = nil
	}
	for _, a := range addrs {
		if err := checkAddr("address", a); err != nil {
			return Rules{err: err}
		}
		to = append(to, fmt.Sprintf("-d %s ", a))
	}
	errorsTo := errorChain("-err", quotes(43))
	in := chain{first: true}
	for _, d := range to {
		in.rules = append(in.rules,
			fmt.Sprintf("-p mh %s%s", d, targetBypass),
			fmt.Sprintf("-p ipv6-icmp %s-j $CHAIN%s", d, errorsTo.suffix),
			fmt.Sprintf("-m ipv6header --header ipv6-opts --soft %s%s", d, targetBypass))
	}
	return Rules{v6: []chain{in, errorsTo}}
}

// table is the one whose rules packets meet before connection tracking does: it
// need not make up connections of what is taken here, and sees what is put in its
// place.
const table = "raw"

// chainPrefix is what the names of all our chains begin with.
const chainPrefix = "DSCO-"

func chainName(queue uint16) string { return chainPrefix + strconv.Itoa(int(queue)) }

// comment marks the rules in built-in chains.
const comment = "dsco"

func jump(chain string) string {
	return fmt.Sprintf("PREROUTING -m comment --comment %s -j %s", comment, chain)
}

// script is the input of iptables-restore --noflush that replaces what the
// table holds of the queue's chains, as iptables-save has printed it, by
// chains. It is empty if there is nothing to be done.
func script(queue uint16, chains []chain, saved string) string {
	name := chainName(queue)
	var b strings.Builder
	jumps, old, _ := ours(name, saved)
	for _, j := range jumps {
		fmt.Fprintf(&b, "-D %s\n", j)
	}
	for _, c := range old {
		fmt.Fprintf(&b, "-F %s\n", c)
	}
	var fresh []string
	for _, c := range chains {
		fresh = append(fresh, name+c.suffix)
	}
	for _, c := range old {
		if !slices.Contains(fresh, c) {
			fmt.Fprintf(&b, "-X %s\n", c)
		}
	}
	expand := strings.NewReplacer("$CHAIN", name, "$NUM", strconv.Itoa(int(queue)))
	for _, c := range chains {
		for _, rule := range c.rules {
			fmt.Fprintf(&b, "-A %s%s %s\n", name, c.suffix, expand.Replace(rule))
		}
	}
	for _, c := range chains {
		if c.first {
			fmt.Fprintf(&b, "-I %s\n", jump(name+c.suffix))
		}
	}
	if b.Len() == 0 {
		return ""
	}
	var declared strings.Builder
	for _, c := range fresh {
		fmt.Fprintf(&declared, ":%s - [0:0]\n", c)
	}
	return "*" + table + "\n" + declared.String() + b.String() + "COMMIT\n"
}

// ours finds the chains named name and below, and the rules in other chains
// that lead to them, in what iptables-save has printed; rules is how many there
// are in those chains.
func ours(name, saved string) (jumps, chains []string, rules int) {
	is := func(chain string) bool { return chain == name || strings.HasPrefix(chain, name+"-") }
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case strings.HasPrefix(line, ":") && is(f[0][1:]):
			chains = append(chains, f[0][1:])
		case f[0] == "-A" && is(f[1]):
			rules++
		case f[0] == "-A" && (f[len(f)-2] == "-j" || f[len(f)-2] == "-g") && is(f[len(f)-1]):
			jumps = append(jumps, strings.TrimPrefix(line, "-A "))
		}
	}
	return jumps, chains, rules
}

// whole reports whether saved has all of the chains, their rules, and what leads
// to them.
func whole(queue uint16, chains []chain, saved string) bool {
	jumps, there, rules := ours(chainName(queue), saved)
	for _, c := range chains {
		rules -= len(c.rules)
		if c.first && !slices.Contains(jumps, jump(chainName(queue)+c.suffix)) {
			return false
		}
	}
	return rules == 0 && len(there) == len(chains)
}

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.:@=-]{1,15}$`)

// checkInterface refuses names that would mean something else in a rule: "+" at
// the end stands for any, and blanks and quotes end a word.
func checkInterface(name string) error {
	if !interfaceName.MatchString(name) || name[0] == '-' {
		return fmt.Errorf("filter: rules: interface name %q; use letters, digits and _ . - only, 15 at most", name)
	}
	return nil
}

func checkAddr(what string, a netip.Addr) error {
	if !a.Is6() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
		return fmt.Errorf("filter: rules: %s %v; use a global unicast address of IPv6", what, a)
	}
	return nil
}

func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() {
		return fmt.Errorf("filter: rules: prefix %v; use one of IPv6", p)
	}
	return nil
}
