package node

import (
	"os"
	"strings"
	"testing"
)

// The titles are those of the public conformance suite for mobile nodes (IPv6
// Ready Logo, Mobile IPv6 self-test 4.0.2). Each is here: with a test, or with
// the reason why it cannot apply. Where a title has the mobile node move, ours
// is the inversion: the node stays, and a client or the contact's role moves.
const (
	noAddresses   = "home and care-of address are configured: a server's do not come from router advertisements"
	noMovement    = "a node does not move: it has no movement to detect"
	noLifetimes   = "the addresses are configured, and have no lifetimes that could end or change"
	noLinkLocal   = "L is clear: the home address is on no interface, so there is no link-local address of the home link (the recorded mobile node does the same)"
	noHomeLink    = "a node is never at home: there it would be a host with its home address, and its home agent a router"
	noNewCareOf   = "a node's care-of address never changes, so bindings stay as they are whoever registers with the home agent"
	noDiscovery   = "the home agent is configured: section 11.4.1 is for those who do not know it"
	noPrefixes    = "the home prefix is configured: section 11.4.2 is for those who renumber"
	noIPsec       = "home registrations are authenticated by RFC 4285, not IPsec; there is no IKE"
	noMobilePeer  = "the distributed server is no correspondent node: it starts no route optimisation for clients that are mobile nodes themselves, and reaches them at their home address"
	noData        = "payload packets pass by: the shim of package stack sends and receives them, by what the events say"
	alwaysAck     = "A is always set: what a lost Binding Update costs is known a second later"
	onlyOnRequest = "payload packets start nothing here: the driver says when a route is to be optimised"
	neighbourhood = "the home link is the home agent's: it answers Neighbor Solicitations for the home address"
)

var titles = map[string]any{
	"MN-0-0-0-1-001": testOperation1,
	"MN-0-0-0-2-001": testOperation2,

	"MN-3-1-1-1-001": noAddresses,
	"MN-3-1-1-1-009": noAddresses,
	"MN-3-1-1-1-010": noAddresses,
	"MN-3-2-1-1-001": noAddresses,
	"MN-3-3-1-1-003": noMovement,
	"MN-3-3-1-1-005": noMovement,
	"MN-3-3-1-1-002": noMovement,
	"MN-3-3-1-1-004": noMovement,

	// Home registration.
	"MN-2-1-1-1-001": testHomeUpdate,
	"MN-2-1-1-1-002": noLinkLocal,
	"MN-2-1-1-1-004": testHomeUpdate,
	"MN-2-1-1-1-006": noLifetimes,
	"MN-2-1-1-1-007": noLifetimes,
	"MN-2-1-1-1-008": testHomeExpired,
	"MN-2-1-1-1-013": testHomeFirstBackoff,
	"MN-2-2-1-1-001": testHomeAccepted(0),
	"MN-2-2-1-1-039": testHomeReserved,
	"MN-2-2-1-1-014": testHomeAccepted(0),
	"MN-2-2-1-1-020": testHomeLifetime,
	"MN-2-2-1-1-026": testHomeAdvice,
	"MN-2-2-1-1-002": testHomeAccepted(1),
	"MN-2-2-1-1-033": testHomeAccepted(2, 3, 64, 127),
	"MN-2-2-1-1-003": testHomeRefused(128),
	"MN-2-2-1-1-004": testHomeRefused(129),
	"MN-2-2-1-1-005": testHomeRefused(130),
	"MN-2-2-1-1-006": testHomeRefused(131),
	"MN-2-2-1-1-007": testHomeRefused(132),
	"MN-2-2-1-1-009": testHomeRefused(134),
	"MN-2-2-1-1-010": testHomeSequence(12345),
	"MN-2-2-1-1-035": testHomeRefused(255),
	"MN-2-2-1-1-016": testHomeSequence(65535),
	"MN-2-2-1-1-017": testHomeWrongSequence,
	"MN-2-2-1-1-038": testHomeUnprotected,
	"MN-2-1-2-1-001": testContactMoves,
	"MN-2-1-2-1-004": testHomeRefresh,
	"MN-2-1-2-1-005": noLifetimes,
	"MN-2-1-2-1-006": testHomeBackoff,
	"MN-2-1-3-1-007": noHomeLink,
	"MN-2-1-3-1-001": testDeregister,
	"MN-2-2-2-1-027": neighbourhood,
	"MN-2-2-2-1-001": testDeregister,
	"MN-2-2-2-1-008": testDeregister133,
	"MN-3-4-1-1-001": noHomeLink,
	"MN-3-4-1-1-002": noHomeLink,

	// Correspondent registration: return routability.
	"MN-2-1-1-2-001": testTestsSent,
	"MN-2-1-1-2-019": testTestsAfterExpiry,
	"MN-2-1-1-2-009": noNewCareOf,
	"MN-2-1-1-2-017": noLifetimes,
	"MN-2-1-1-2-028": testDataStartsNothing,
	"MN-2-1-1-2-004": testDataStartsNothing,
	"MN-2-1-1-2-006": testDataStartsNothing,
	"MN-2-1-1-2-010": testTestsBackoff,
	"MN-2-1-1-2-015": testOnlyOnRequest,
	"MN-2-1-1-2-016": testOnlyOnRequest,
	"MN-2-1-3-2-001": testOrder("CoTI", "HoTI"),
	"MN-2-1-3-2-007": testOrder("HoTI", "CoTI"),
	"MN-2-1-3-2-015": testTestReserved("HoTI"),
	"MN-2-1-3-2-008": testTwice("HoTI"),
	"MN-2-1-3-2-002": testDelayed("HoTI"),
	"MN-2-1-3-2-003": testCookie("HoTI"),
	"MN-2-1-3-2-004": testWrongSource("HoTI"),
	"MN-2-1-3-2-011": testUnknownNode("HoTI"),
	"MN-2-1-3-2-012": testUnexpected("HoTI"),
	"MN-2-1-2-2-001": testTestsSent,
	"MN-2-1-2-2-019": testTestsAfterExpiry,
	"MN-2-1-2-2-009": noNewCareOf,
	"MN-2-1-2-2-017": noLifetimes,
	"MN-2-1-2-2-004": testDataStartsNothing,
	"MN-2-1-2-2-010": testTestsBackoff,
	"MN-2-1-4-2-001": testOrder("CoTI", "HoTI"),
	"MN-2-1-4-2-006": testOrder("HoTI", "CoTI"),
	"MN-2-1-4-2-014": testTestReserved("CoTI"),
	"MN-2-1-4-2-007": testTwice("CoTI"),
	"MN-2-1-4-2-002": testDelayed("CoTI"),
	"MN-2-1-4-2-003": testCookie("CoTI"),
	"MN-2-1-4-2-004": testWrongSource("CoTI"),
	"MN-2-1-4-2-010": testUnknownNode("CoTI"),
	"MN-2-1-4-2-011": testUnexpected("CoTI"),

	// Correspondent registration: Binding Updates.
	"MN-3-1-1-2-001": testUpdate,
	"MN-3-1-1-2-002": alwaysAck,
	"MN-3-1-1-2-003": testUpdate,
	"MN-3-1-1-2-004": testUpdate,
	"MN-3-1-1-2-006": testUpdateBackoff,
	"MN-3-2-1-2-001": testAccepted,
	"MN-3-2-1-2-029": testAckReserved,
	"MN-3-2-1-2-017": testLifetimeLess,
	"MN-3-2-1-2-018": testLifetimeEqual,
	"MN-3-2-1-2-003": testRefused,
	"MN-3-2-1-2-010": testSequence,
	"MN-3-2-1-2-011": testNonces(136),
	"MN-3-2-1-2-012": testNonces(137),
	"MN-3-2-1-2-013": testNonces(138),
	"MN-3-2-1-2-014": testWrongSequence,
	"MN-3-2-1-2-023": testRefreshAdvice,
	"MN-3-2-1-2-024": testWrongAuthenticator,
	"MN-3-2-1-2-025": testAuthenticatorNotLast,
	"MN-3-1-2-2-006": testRefresh,
	"MN-3-1-2-2-004": noNewCareOf,
	"MN-3-1-2-2-002": testRefresh,
	"MN-3-1-2-2-001": noLifetimes,
	"MN-3-1-3-2-001": testRelease,
	"MN-3-4-1-2-001": testRefreshRequest,
	"MN-3-4-1-2-006": testRefreshRequestReserved,
	"MN-3-4-1-2-005": testRefreshRequestUnknown,

	"MN-5-1-1-1-001": noDiscovery,
	"MN-5-1-1-1-005": noDiscovery,
	"MN-5-1-1-1-006": noDiscovery,
	"MN-5-1-2-1-002": noDiscovery,
	"MN-5-1-2-1-016": noDiscovery,
	"MN-5-1-2-1-021": noDiscovery,
	"MN-5-1-2-1-026": noDiscovery,
	"MN-5-1-2-1-027": noDiscovery,
	"MN-5-1-2-1-028": noDiscovery,
	"MN-5-1-2-1-029": noDiscovery,
	"MN-4-1-1-1-001": noPrefixes,
	"MN-4-1-1-1-002": noPrefixes,
	"MN-4-1-1-1-004": noPrefixes,
	"MN-4-2-1-1-001": noPrefixes,
	"MN-4-2-1-1-015": noPrefixes,
	"MN-4-2-1-1-004": noPrefixes,
	"MN-4-2-1-1-012": noPrefixes,
	"MN-4-2-1-1-013": noPrefixes,
	"MN-4-2-1-1-014": noPrefixes,
	"MN-4-2-1-1-019": noPrefixes,

	// Errors.
	"MN-6-2-1-1-003": testUnknownType("BA"),
	"MN-4-2-1-2-010": testUnknownType("HoT"),
	"MN-4-2-1-2-015": testUnknownType("CoT"),
	"MN-3-3-1-2-004": testBindingError1,
	"MN-3-3-1-2-009": testBindingError2("CoTI"),
	"MN-3-3-1-2-011": testBindingError2("HoTI"),
	"MN-3-3-1-2-001": testBindingError2("BU"),
	"MN-3-3-1-2-002": testBindingError2Unexpected,
	"MN-3-3-1-2-007": testBindingError2Unknown,
	"MN-6-2-1-1-001": testProblem("BA", 0, 40),
	"MN-6-2-1-1-002": testProblem("BA", 1, 41),
	"MN-6-2-1-1-004": testChecksum("BA"),
	"MN-4-2-1-2-005": testProblem("HoT", 0, 40),
	"MN-4-2-1-2-006": testProblem("HoT", 1, 41),
	"MN-4-2-1-2-007": testChecksum("HoT"),
	"MN-4-2-1-2-011": testProblem("CoT", 0, 40),
	"MN-4-2-1-2-012": testProblem("CoT", 1, 41),
	"MN-4-2-1-2-013": testChecksum("CoT"),
	"MN-6-2-2-1-001": testHomeParameterProblem,
	"MN-4-2-2-2-002": testParameterProblem("HoTI"),
	"MN-4-2-2-2-005": testParameterProblem("CoTI"),
	"MN-4-2-2-2-007": testParameterProblem("BU"),
	"MN-4-2-2-2-012": testUnreachable,
	"MN-4-2-2-2-010": testErrorStartsNothing,
	"MN-4-2-2-2-011": testOptionRefused,

	"MN-4-1-1-2-001": testViaHomeAgent,
	"MN-4-1-1-2-002": testUpdate,
	"MN-4-1-1-2-004": noHomeLink,
	"MN-4-1-1-2-005": testExpired,
	"MN-4-1-1-2-006": neighbourhood,
	"MN-4-1-1-2-007": noIPsec,
	"MN-4-1-2-2-007": noHomeLink,
	"MN-4-1-2-2-006": noData,
	"MN-4-1-2-2-010": testNotOurAddress,
	"MN-4-1-2-2-003": noData,
	"MN-4-1-2-2-004": testRoutingLength,
	"MN-4-1-2-2-005": testRoutingSegments,
	"MN-4-1-2-2-011": testRoutingHome,

	"MN-1-1-2-1-001": testHomeSecurity,
	"MN-1-2-1-1-001": noIPsec,
	"MN-1-2-1-1-002": noIPsec,
	"MN-1-2-1-1-004": noIPsec,
	"MN-1-2-1-1-012": noIPsec,
	"MN-1-2-1-1-014": noIPsec,
	"MN-1-2-1-1-022": noIPsec,
	"MN-1-2-1-1-024": noIPsec,
	"MN-1-2-1-1-025": noIPsec,
	"MN-1-2-2-1-001": noIPsec,
	"MN-1-2-2-1-002": noIPsec,
	"MN-1-2-2-1-004": noIPsec,
	"MN-1-2-2-1-006": noIPsec,
	"MN-1-2-2-1-018": noIPsec,
	"MN-1-2-2-1-010": noIPsec,
	"MN-1-2-2-1-014": noIPsec,
	"MN-1-2-2-1-019": noIPsec,
	"MN-1-2-3-1-001": noIPsec,
	"MN-1-2-3-1-002": noIPsec,
	"MN-1-2-3-1-004": noIPsec,
	"MN-1-2-3-1-006": noIPsec,
	"MN-1-2-3-1-010": noIPsec,
	"MN-1-2-3-1-014": noIPsec,
	"MN-1-2-3-1-017": noIPsec,

	"MN-0-0-0-3-001": noMobilePeer,
	"MN-2-1-1-2-002": onlyOnRequest,
	"MN-2-1-1-2-003": testTunneledTestInit,
	"MN-2-1-1-3-001": noMobilePeer,
	"MN-2-1-2-3-001": noMobilePeer,
	"MN-3-1-1-3-001": noMobilePeer,
	"MN-3-1-2-3-001": noMobilePeer,
	"MN-3-1-3-3-001": noMobilePeer,
	"MN-4-1-1-3-001": noMobilePeer,
	"MN-4-1-2-3-001": noMobilePeer,
}

// Every title has a test named after it, or a reason.
func TestTitles(t *testing.T) {
	text, err := os.ReadFile("testdata/tahi-titles.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	tests := 0
	for line := range strings.Lines(string(text)) {
		title := strings.TrimSpace(line)
		id, _, ok := strings.Cut(title, " - ")
		if !ok || !strings.HasPrefix(id, "MN-") {
			continue
		}
		seen[id] = true
		switch how := titles[id].(type) {
		case func(*testing.T):
			tests++
			t.Run(title, how)
		case string:
		default:
			t.Errorf("%s: neither a test nor a reason", title)
		}
	}
	if len(seen) != len(titles) {
		t.Errorf("%d titles, %d entries", len(seen), len(titles))
	}
	t.Logf("%d titles, %d with a test", len(seen), tests)
}
