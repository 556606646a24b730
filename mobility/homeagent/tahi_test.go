package homeagent

import (
	_ "embed"
	"slices"
	"strings"
	"testing"
)

// The cases of the public conformance suite for home agents (TAHI ct-mipv6-ha),
// by title. The suite runs most of them twice, on a real home link and on a
// virtual one, to which the home prefix is routed. Where it protects messages
// with IPsec, they have the authentication option of RFC 4285 here.

//go:embed testdata/tahi-titles.txt
var tahiTitles string

type tahiCase struct {
	title   string
	virtual bool
	run     func(s *scene)
}

// judgedOtherwise are titles that ask for IPsec, and what is judged instead.
var judgedOtherwise = map[string]string{
	"HA_0_0_0":  "the suite's own initialization: a home agent can be made",
	"HA_2_2_3":  "a Binding Update without IPsec: without or with a wrong authentication option",
	"HA_2_2_6":  "as HA_2_2_3",
	"HA_2_1_11": "K asks for key management that follows the mobile node, of which there is none: K is clear in the answer",
	"HA_2_1_13": "as HA_2_1_11",
	"HA_6_3_9":  "a HoTI through a tunnel without ESP: through a tunnel from an address that is not registered",
	"HA_6_3_10": "as HA_6_3_9",
}

func TestTAHI(t *testing.T) {
	var all []tahiCase
	for _, chapter := range [][]tahiCase{
		tahiHeaders, tahiRegistration, tahiRefusal, tahiDuplicates, tahiSequence(),
		tahiDeregistration, tahiNeighbors, tahiTunnel, tahiDiscovery, tahiPrefixes,
	} {
		all = append(all, chapter...)
	}
	titles := strings.Split(strings.TrimSpace(tahiTitles), "\n")
	tested := map[string]bool{}
	for _, c := range all {
		if tested[c.title] {
			t.Errorf("%q has two tests", c.title)
		}
		tested[c.title] = true
		if !slices.ContainsFunc(titles, func(s string) bool { return strings.Replace(s, " - ", " ", 1) == c.title }) {
			t.Errorf("%q is not of the suite", c.title)
		}
		t.Run(c.title, func(t *testing.T) {
			if c.virtual {
				c.run(newScene(t, virtual))
			} else {
				c.run(newScene(t))
			}
		})
	}
	for _, title := range titles {
		if !tested[strings.Replace(title, " - ", " ", 1)] {
			t.Errorf("%q has no test", title)
		}
	}
	for id := range judgedOtherwise {
		if !slices.ContainsFunc(titles, func(s string) bool { return strings.HasPrefix(s, id+" ") }) {
			t.Errorf("%q is not of the suite", id)
		}
	}
}
