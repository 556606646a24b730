package stack

import (
	"sync"

	"github.com/distributed-servers/ds/tun"
)

// simpleDevice gives a device that moves one packet at a time the methods of one
// with offloads, of which it has none.
type simpleDevice struct {
	tun.Device
	scratch sync.Pool // of *[]byte
}

// offloadDevice returns dev as a device with offloads.
func offloadDevice(dev tun.Device) tun.OffloadDevice {
	if d, ok := dev.(tun.OffloadDevice); ok {
		return d
	}
	d := &simpleDevice{Device: dev}
	d.scratch.New = func() any { return new([]byte) }
	return d
}

func (d *simpleDevice) Queues() int    { return 1 }
func (d *simpleDevice) Offloads() bool { return false }

// ReadPacket cannot tell whether there is a packet without waiting for it.
func (d *simpleDevice) ReadPacket(_ int, b []byte, wait bool) ([]byte, tun.Offload, error) {
	if !wait {
		return nil, tun.Offload{}, nil
	}
	n, err := d.Read(b[:min(len(b), d.MTU())])
	if err != nil {
		return nil, tun.Offload{}, err
	}
	return b[:n], tun.Offload{}, nil
}

func (d *simpleDevice) WritePacket(_ int, _ tun.Offload, parts [][]byte) error {
	if len(parts) == 1 {
		_, err := d.Write(parts[0])
		return err
	}
	b := d.scratch.Get().(*[]byte)
	*b = (*b)[:0]
	for _, p := range parts {
		*b = append(*b, p...)
	}
	_, err := d.Write(*b)
	d.scratch.Put(b)
	return err
}
