//go:build linux

package topology

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		all  []int
		want string // of three programs
	}{
		{[]int{5}, "[5] [5] [5]"},
		{[]int{0, 3}, "[0] [3] [0]"},
		{[]int{0, 1, 2}, "[0] [1] [2]"},
		{[]int{2, 3, 4, 5, 70, 71, 72}, "[2 5 72] [3 70] [4 71]"},
	} {
		var all unix.CPUSet
		for _, cpu := range tt.all {
			all.Set(cpu)
		}
		var got [3][]int
		for i := range got {
			own := share(all, i, len(got))
			for cpu := range 100 {
				if own.IsSet(cpu) {
					got[i] = append(got[i], cpu)
				}
			}
		}
		if s := fmt.Sprintf("%v %v %v", got[0], got[1], got[2]); s != tt.want {
			t.Errorf("of %v: %s, want %s", tt.all, s, tt.want)
		}
	}
}
