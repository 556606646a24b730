//go:build race

package ds_test

func init() { handoffs = 50 } // a tenth of the speed
