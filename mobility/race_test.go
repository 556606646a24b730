//go:build race

package mobility_test

const raceDetector = true
