//go:build race

package tour

const raceDetector = true
