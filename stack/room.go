package stack

// sendRoom is the room on a stack that netstack's Write takes, from the call until the
// packet is the kernel's, in octets.
const sendRoom = 8<<10 + 512

// makeRoom grows the stack of the calling goroutine, if it has no room for a Write; if it has,
// that costs 3 ns. A new goroutine has 2 KiB, and each time a call does not fit its stack
// doubles: what is on it is copied, and each of its frames looked up. On the way to the
// device that is three times, with ever more frames, in the middle of the first answer;
// here it is once, with few.
func makeRoom() { room(false) }

// room has a frame of that size, and that is all: the stack grows at the call. Nobody
// touches the frame.
//
//go:noinline
func room(touch bool) byte {
	if !touch {
		return 0
	}
	var frame [sendRoom]byte
	return fill(&frame)
}

//go:noinline
func fill(frame *[sendRoom]byte) byte {
	frame[0]++
	return frame[0]
}
