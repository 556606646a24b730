//go:build !race

package ds_test

const raceDetector = false
