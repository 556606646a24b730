package member

import (
	"fmt"
	"slices"
)

// Versions of the protocol between members that this release speaks, the oldest and
// the newest. A release that changes what older ones must understand speaks a newer
// one too, and leaves an old one out when no neighbouring release needs it any more.
// What older ones may skip is no new version: a field, or a kind of message that a
// feature announces. Testdata has a peer of each version, frozen.
//
//	1  the donor decided; never released
//	2  the target decides (Transfer, Done)
const (
	Oldest = 2
	Newest = 2
)

// A Feature is something that a member can do and others of the same version need
// not: it says so in its Hello, and is not asked for it otherwise.
type Feature string

// FeatureOrders is to do what other members order: Order, Reported.
const FeatureOrders Feature = "orders"

// features are those of this release.
var features = []Feature{FeatureOrders}

// Limits of a Hello.
const (
	maxFeatures = 64
	maxFeature  = 32 // octets
)

// agree is the version that two members speak: the newest that both know. It tells
// what to do if there is none.
func agree(hello *Message, oldest, newest int) (version int, err error) {
	theirs := max(hello.Newest, hello.Version) // releases with one version only do not tell Newest
	version = min(theirs, newest)
	if version < hello.Version || version < oldest {
		older := "the other node"
		if theirs > newest {
			older = "this node"
		}
		return 0, fmt.Errorf("it speaks %s of the protocol between members, this node %s; upgrade %s, one release at a time",
			versions(hello.Version, theirs), versions(oldest, newest), older)
	}
	return version, nil
}

func versions(oldest, newest int) string {
	if oldest == newest {
		return fmt.Sprintf("version %d", oldest)
	}
	return fmt.Sprintf("versions %d to %d", oldest, newest)
}

// can tells whether a member has a feature; one that has not said hello yet may.
func (m *Member) can(name string, f Feature) bool {
	hello := m.up[name]
	return hello == nil || slices.Contains(hello.Features, f)
}
