package ds

import (
	"context"
	"strings"
	"testing"
)

// More than a message has room for is not sent: the client stays.
func TestTransferTooLarge(t *testing.T) {
	h := &handoff{report: &Report{Snapshot: maxTransfer, State: 1}}
	if err := h.transfer(context.Background()); err == nil || !strings.Contains(err.Error(), "can be sent at once") || h.came != open {
		t.Errorf("%v, phase %d", err, h.came)
	}
}

// Clients that nobody accepts are refused at some time.
func TestTooManyArrivals(t *testing.T) {
	l := &HandoffListener{ready: make([]*Incoming, maxArrivals-1)}
	if err := l.takes(); err != nil {
		t.Error(err)
	}
	l.ready = append(l.ready, new(Incoming))
	if err := l.takes(); err == nil || !strings.Contains(err.Error(), "slow to accept") {
		t.Errorf("one more: %v", err)
	}
}
