package correspondent

import (
	_ "embed"
	"slices"
	"strings"
	"testing"
)

// The cases of the public conformance suite for correspondent nodes (TAHI
// ct-mipv6-cn 4.0.2), by title. What each sends and judges is what the suite's
// own description says; a packet of it that is only there to set up the real
// network (router advertisements, neighbor solicitations) is left out.

//go:embed testdata/tahi-titles.txt
var tahiTitles string

type tahiCase struct {
	title string
	run   func(m *mobile)
}

// notApplicable are the titles without a test, and why. There are none: the one
// that asks for IPsec (CN-6-4-2) is judged by what reaches IPsec and what IPsec
// gives to be sent.
var notApplicable = map[string]string{}

func TestTAHI(t *testing.T) {
	var all []tahiCase
	for _, chapter := range [][]tahiCase{
		tahiNormal, tahiMessages, tahiRegistration, tahiDeregistration, tahiHandover,
		tahiNonces, tahiTokens, tahiSequence, tahiLifetime, tahiHomeRegistration, tahiValidation, tahiPayload,
	} {
		all = append(all, chapter...)
	}
	seen := map[string]bool{}
	for _, test := range all {
		if seen[test.title] {
			t.Errorf("two tests of %q", test.title)
		}
		seen[test.title] = true
		t.Run(test.title, func(t *testing.T) {
			m := newHost(t).mobile()
			// Before each case the suite sees that there is no binding.
			m.replied(m.pingFrom(home, addrNone), home, addrNone)
			m.unbound()
			test.run(m)
		})
	}

	titles := strings.Split(strings.TrimSpace(tahiTitles), "\n")
	for i, title := range titles {
		titles[i] = strings.TrimPrefix(title, "(disabled) ")
		if why, ok := notApplicable[titles[i]]; seen[titles[i]] == ok {
			t.Errorf("%q: a test: %t, not applicable: %q", titles[i], seen[titles[i]], why)
		}
	}
	for title := range seen {
		if !slices.Contains(titles, title) {
			t.Errorf("%q is no title of the suite", title)
		}
	}
}
