package awake

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// device remembers what is written to it, and when.
type device struct {
	mu     sync.Mutex
	begin  time.Time
	said   []string
	closed int
}

func (d *device) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, fmt.Sprintf("%d at %v", binary.NativeEndian.Uint32(b), time.Since(d.begin)))
	return len(b), nil
}

func (d *device) Close() error {
	d.closed++
	return nil
}

// Processors sleep again so long after the last handoff, and what many handoffs ask
// for is written once.
func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &device{begin: time.Now()}
		k := New(d)
		for range 5 {
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() { k.For(20 * time.Millisecond) })
			}
			all.Wait()
			time.Sleep(10 * time.Millisecond)
		}
		k.For(time.Millisecond) // less than there is
		time.Sleep(100 * time.Millisecond)
		k.For(20 * time.Millisecond)
		if err := k.Close(); err != nil || k.Close() != nil {
			t.Error(err)
		}
		k.For(20 * time.Millisecond)
		time.Sleep(time.Second)
		const want = "[0 at 0s 2000000000 at 60ms 0 at 150ms]"
		if got := fmt.Sprint(d.said); got != want || d.closed != 1 {
			t.Errorf("%s, closed %d times, want %s and once", got, d.closed, want)
		}
	})
}

func TestNil(t *testing.T) {
	var k *Keeper
	k.For(time.Second)
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}
