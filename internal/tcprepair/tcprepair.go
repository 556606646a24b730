package tcprepair

import "fmt"

// MaxQueue is the most that [Contents] may ask for in one queue: what the
// default receive window of Linux takes without the application reading.
const MaxQueue = 64 << 10

// Contents says how much the moved connection holds while it moves, in octets.
type Contents struct {
	Unsent int // written by the moved end and never on the wire
	Unread int // received and acknowledged by the moved end, but not read
}

func (c Contents) check() error {
	for _, n := range []int{c.Unsent, c.Unread} {
		if n < 0 || n > MaxQueue {
			return fmt.Errorf("tcprepair: contents: %d octets: not in 0…%d", n, MaxQueue)
		}
	}
	return nil
}
