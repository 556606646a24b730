package ds

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
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
		u := newUnhurried(&said, func() bool { return false })
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
		u.Send(&api.Message{Kind: api.Settled, ID: 4})
		said.expect(t, "activated 3 after 0s, settled 4 after 0s")

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

// What many goroutines send at the same time goes together, in the order of each. What one
// of them must not send is its own fault alone, and a session that has ended is everybody's.
func TestUnhurriedTogether(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const senders = 32
	var said sayings
	u := newUnhurried(&said, func() bool { return true })
	var wg sync.WaitGroup
	errs := make([]error, senders)
	for i := range uint64(senders) {
		wg.Go(func() {
			if errs[i] = u.Send(&api.Message{Kind: api.Settled, ID: 100*i + 1}); i%4 == 3 {
				errs[i] = u.Send(&api.Message{Kind: api.Settled}) // without ID
			} else {
				errs[i] = errors.Join(errs[i], u.Send(&api.Message{Kind: api.Settled, ID: 100*i + 2}))
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if wrong := i%4 == 3; wrong != errors.Is(err, api.ErrMessage) || !wrong && err != nil {
			t.Errorf("sender %d: %v", i, err)
		}
	}
	all := strings.Split(strings.Join(said.all, ", "), ", ")
	if len(all) != 2*senders-senders/4 {
		t.Errorf("%d messages are out", len(all))
	}
	for i := range senders {
		first := slices.Index(all, fmt.Sprintf("settled %d after 0s", 100*i+1))
		second := slices.Index(all, fmt.Sprintf("settled %d after 0s", 100*i+2))
		if first < 0 || (second < first) != (i%4 == 3) {
			t.Errorf("sender %d: messages %d and %d of all", i, first, second)
		}
	}
	if len(said.all) > len(all)/4 {
		t.Errorf("%d messages went out by %d and %d", len(all), len(said.all), len(all)/len(said.all))
	}

	said.err = errors.New("broken")
	if err := u.Send(&api.Message{Kind: api.Settled, ID: 1}); !errors.Is(err, said.err) {
		t.Errorf("alone in an ended session: %v", err)
	}
}

// sayings is a session that keeps what is sent together.
type sayings struct {
	Session
	mu  sync.Mutex
	all []string
	err error
}

func (s *sayings) Send(all ...*api.Message) error {
	line := ""
	for _, m := range all {
		line += fmt.Sprintf(", %s %d after %v", m.Kind, m.ID, m.Ago)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, line[2:])
	return s.err
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
