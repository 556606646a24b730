package httpmove

import "net/http"

// Checkpoint lets a request's connection move while its handler waits for more of
// the body, or, once it has hijacked the connection, in the connection's Read. A
// handler calls it before it reads and writes. It returns what save returned on the
// node before, or nil if the request begins here.
//
// save is called while the handler waits so, all octets that were read before
// being dealt with, and returns what the handler needs to go on, at most
// [ds.MaxState] octets. At the target the handler is called with the same request,
// whose Body begins where it was. One that has hijacked the connection does so
// again, and sends no further response to the request; octets that it has read
// ahead, as in a [bufio.Reader], are for save to keep.
//
//	func upload(w http.ResponseWriter, r *http.Request) {
//		digest := sha256.New()
//		saved := httpmove.Checkpoint(r, digest.(encoding.BinaryMarshaler).MarshalBinary)
//		if saved != nil && digest.(encoding.BinaryUnmarshaler).UnmarshalBinary(saved) != nil {
//			panic(http.ErrAbortHandler)
//		}
//		if _, err := io.Copy(digest, r.Body); err == nil {
//			fmt.Fprintf(w, "%x\n", digest.Sum(nil))
//		}
//	}
//
// If save fails, the client stays. A body in chunks, or one whose response has
// begun, is finished first. Outside of a [Server] Checkpoint does nothing and
// returns nil.
func Checkpoint(r *http.Request, save func() ([]byte, error)) (saved []byte) {
	if c := connOf(r); c != nil {
		return c.checkpoint(save)
	}
	return nil
}
