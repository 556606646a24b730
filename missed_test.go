package ds

import (
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
)

// What an application has missed is told as long as it has not come after all, and no
// more of it than a message may have.
func TestMissed(t *testing.T) {
	first := netip.MustParseAddr("2001:db8:1::1")
	n := &Node{arriving: make(map[uint64]*arrival)}
	client := first
	for id := range uint64(api.MaxMissed + 1) {
		n.arriving[id] = &arrival{client: client, from: "a"}
		n.take(id, true)
		client = client.Next()
	}
	n.take(0, true) // which is not there any more
	if len(n.missed) != api.MaxMissed || n.missed[0].Client != first.Next() {
		t.Fatalf("missed are %d, the first %v", len(n.missed), n.missed[0])
	}
	hello := &api.Message{Kind: api.Hello, Program: "p", HasTUN: true, TellsMissed: true, Missed: n.missed}
	if _, err := api.AppendMessage(nil, hello); err != nil {
		t.Error(err)
	}
	again := first.Next()
	n.arriving[1] = &arrival{client: again, from: "b"}
	n.take(1, false)
	if hello.Missed = n.missed; hello.Got(again, "a") || !hello.Got(again, "b") {
		t.Errorf("what came from b, and not from a: %v, %v", hello.Got(again, "b"), hello.Got(again, "a"))
	}
	n.arriving[1] = &arrival{client: again, from: "a"}
	n.take(1, false)
	if hello.Missed = n.missed; !hello.Got(again, "a") || hello.Got(again.Next(), "a") {
		t.Error("it has come after all")
	}
	hello.TellsMissed = false
	if hello.Resume = []netip.Addr{first}; hello.Got(again, "a") || !hello.Got(first, "a") {
		t.Error("an application of before has had what it has")
	}
}
