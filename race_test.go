//go:build race

package ds_test

const raceDetector = true

func init() { handoffs = 50 } // a tenth of the speed
