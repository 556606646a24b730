package bedbench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distributed-servers/ds/internal/netns/topology"
)

// processorTime is how long a process has been on a processor: all of its threads,
// as the scheduler counts, in nanoseconds (Documentation/scheduler/sched-stats.rst).
// A thread that has ended is missing; Go's rarely do.
func processorTime(p *topology.Process) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID()))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		var ns int64
		if err == nil {
			_, err = fmt.Sscan(strings.TrimSpace(string(b)), &ns)
		}
		if err != nil {
			return 0, fmt.Errorf("bedbench: processor time of %s: %w", p, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// processorTimes are those of processes, in their order.
func processorTimes(all ...*topology.Process) (times []time.Duration, err error) {
	for _, p := range all {
		t, err := processorTime(p)
		if err != nil {
			return nil, err
		}
		times = append(times, t)
	}
	return times, nil
}
