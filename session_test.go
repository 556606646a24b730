package ds

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// What can wait is sent after a moment, with how long it has waited; before all that is
// said later; and at once when there is much of it.
func TestUnhurried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said sayings
		u := newUnhurried(&said)
		later := func(id uint64) { u.Later(&api.Message{Kind: api.Activated, ID: id}) }

		later(1)
		time.Sleep(moment / 4)
		later(2)
		synctest.Wait()
		said.expect(t)
		time.Sleep(moment)
		synctest.Wait()
		said.expect(t, "activated 1 after 1ms, activated 2 after 750µs")

		later(3)
		u.Send(&api.Message{Kind: api.Prepare, ID: 4})
		said.expect(t, "activated 3 after 0s, prepare 4 after 0s")

		want := ""
		for id := range uint64(maxReplies) {
			later(id)
			want += fmt.Sprintf(", activated %d after 0s", id)
		}
		said.expect(t, want[2:])
		time.Sleep(2 * moment)
		synctest.Wait()
		said.expect(t)
	})
}

// sayings is a session that keeps what is sent together.
type sayings struct {
	Session
	mu  sync.Mutex
	all []string
}

func (s *sayings) Send(all ...*api.Message) error {
	line := ""
	for _, m := range all {
		line += fmt.Sprintf(", %s %d after %v", m.Kind, m.ID, m.Ago)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, line[2:])
	return nil
}

func (s *sayings) expect(t *testing.T, want ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.all) != fmt.Sprint(want) {
		t.Errorf("said %q, want %q", s.all, want)
	}
	s.all = nil
}
