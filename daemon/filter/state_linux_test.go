package filter

import "testing"

func TestParseState(t *testing.T) {
	const list = "    7  1234     0 2 65531     0     0       12  1\n 7846 -12     3 2 65531     5     6        7  1\n 7847 4000000000     3 2 65531     5     6        7  1\n short\n"
	if q, ok := parseState(list, 7847); !ok || q != (kernelQueue{4000000000, 7, 5, 6}) {
		t.Errorf("%+v, %t", q, ok)
	}
	for _, queue := range []uint16{0, 78, 7846} { // one has a port that is none
		if q, ok := parseState(list, queue); ok {
			t.Errorf("queue %d: %+v", queue, q)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("    7  1234     0 2 65531     0     0       12  1\n", uint16(7))
	f.Fuzz(func(t *testing.T, list string, queue uint16) {
		if q, ok := parseState(list, queue); !ok && q != (kernelQueue{}) {
			t.Errorf("half of %+v", q)
		}
	})
}
