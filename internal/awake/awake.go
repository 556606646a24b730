// Package awake keeps the machine's processors from sleeping while something is under
// way of which each step waits for the one before, in another process: a processor
// that sleeps takes tens of microseconds until it runs the next step, and a virtual
// one, which has left its machine to the host meanwhile, more.
//
// It is the kernel's PM QoS interface (Documentation/power/pm_qos_interface.rst of
// Linux): what is written to the device is the latency, in microseconds, that somebody
// can bear. 0 makes processors wait without sleeping. It counts as long as the device
// is open, so nothing stays behind after a crash.
package awake

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Device is the kernel's. It is root's unless somebody changes that.
const Device = "/dev/cpu_dma_latency"

// What is written: none, and any.
const (
	never    = 0
	whatever = 2_000_000_000 // the kernel's default, PM_QOS_CPU_LATENCY_DEFAULT_VALUE
)

// Keeper keeps processors awake. A nil Keeper does not.
type Keeper struct {
	begin time.Time
	until atomic.Int64 // nanoseconds after begin; 0: processors may sleep

	mu     sync.Mutex
	device io.WriteCloser
	timer  *time.Timer
	closed bool
}

// Open opens the device. It fails where there is none, and where this process may not
// open it.
func Open() (*Keeper, error) {
	f, err := os.OpenFile(Device, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("awake: %w", err)
	}
	return New(f), nil
}

// New is a Keeper that writes to a device.
func New(device io.WriteCloser) *Keeper {
	k := &Keeper{begin: time.Now(), device: device}
	k.timer = time.AfterFunc(time.Hour, k.expire)
	k.timer.Stop()
	return k
}

// For keeps the processors awake for that long from now on. To do so again before is
// cheap.
func (k *Keeper) For(d time.Duration) {
	if k == nil {
		return
	}
	until := int64(time.Since(k.begin) + d)
	for {
		was := k.until.Load()
		switch {
		case was >= until:
			return
		case was != 0:
			if k.until.CompareAndSwap(was, until) {
				return
			}
			continue
		}
		break
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	if k.until.Swap(until) == 0 {
		k.say(never)
		k.timer.Reset(d)
	}
}

// expire lets the processors sleep, if it is time.
func (k *Keeper) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !k.closed {
		until := k.until.Load()
		if left := time.Duration(until) - time.Since(k.begin); left > 0 {
			k.timer.Reset(left)
			return
		}
		if k.until.CompareAndSwap(until, 0) {
			k.say(whatever)
			return
		}
	}
}

// say writes. If that fails, which the kernel has no reason for, handoffs are slower.
func (k *Keeper) say(microseconds uint32) {
	k.device.Write(binary.NativeEndian.AppendUint32(nil, microseconds))
}

// Close lets the processors sleep.
func (k *Keeper) Close() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	k.timer.Stop()
	return k.device.Close()
}
