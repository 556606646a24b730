//go:build !killpoint

package killpoint

import "fmt"

// Here is the point with the name of where and what, with a space between.
func Here(where string, what fmt.Stringer) {}
