package daemon

import (
	"context"
	"net/netip"
	"sync"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
)

// Drain implements server.Backend.
func (n *Node) Drain(ctx context.Context, dsa netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error {
	return n.job(ctx, dsa, node, jobOf(member.Drain, r), tell)
}

// Move implements server.Backend.
func (n *Node) Move(ctx context.Context, dsa netip.Addr, node string, r api.MoveRequest, tell func(api.MoveProgress) error) error {
	return n.job(ctx, dsa, node, jobOf(member.Move, r), tell)
}

// Undrain implements server.Backend.
func (n *Node) Undrain(ctx context.Context, dsa netip.Addr, node string) error {
	s, err := n.service(dsa)
	if err != nil {
		return err
	}
	a, err := s.command(ctx.Done(), func(id uint64) member.Input {
		return member.Command{ID: id, Node: node, Job: member.Job{What: member.Undrain}}
	})
	if err == nil && a.Err != nil {
		err = api.Errorf(api.ErrConflict, "", "%v", a.Err)
	}
	return err
}

func jobOf(what member.Task, r api.MoveRequest) member.Job {
	j := member.Job{What: what, Rate: r.Rate, Width: r.Concurrency}
	for _, t := range r.To {
		j.To = append(j.To, member.JobTarget{Node: t.Node, Weight: t.Weight, Most: t.Clients})
	}
	return j
}

// job has a node do a job, and tells what it reports.
func (n *Node) job(ctx context.Context, dsa netip.Addr, node string, what member.Job, tell func(api.MoveProgress) error) error {
	s, err := n.service(dsa)
	if err != nil {
		return err
	}
	reports := &jobReports{more: make(chan struct{}, 1)}
	var id uint64
	a, err := s.command(ctx.Done(), func(command uint64) member.Input {
		id = command
		s.jobs[id] = reports
		return member.Command{ID: id, Node: node, Job: what}
	})
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.jobs, id)
		s.stepLocked(member.Command{ID: id, Node: node, Job: member.Job{What: member.Cease}}) // which ends nothing that has ended
	}()
	switch {
	case err != nil:
		return err
	case a.Err != nil:
		return api.Errorf(api.ErrConflict, "", "%v", a.Err)
	}
	for {
		select {
		case <-reports.more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		r := reports.take()
		if err := tell(progress(node, r)); err != nil || r.Done {
			return err
		}
	}
}

// progress is a report in the terms of the API.
func progress(node string, r member.Report) api.MoveProgress {
	p := api.MoveProgress{
		Node: node, Moved: r.Progress.Moved, Moving: r.Progress.Moving, Left: r.Progress.Left, Stuck: r.Progress.Stuck, Failed: r.Progress.Failed,
		Rate: r.Progress.Rate, ETA: api.Seconds(r.Progress.ETA), Done: r.Done, Error: r.Error,
	}
	for _, c := range r.Progress.To {
		p.To = append(p.To, api.MoveTarget{Node: c.Node, Clients: c.Clients})
	}
	for _, f := range r.Failures {
		p.Failures = append(p.Failures, api.MoveFailure{Client: f.Client, To: f.To, Error: f.Error, GivenUp: f.GivenUp})
	}
	return p
}

// jobReports are those that a caller has not taken yet, as one: the latest, with
// the failures of all.
type jobReports struct {
	more chan struct{}

	mu     sync.Mutex
	report member.Report
}

// maxFailures is how many wait for a caller at most.
const maxFailures = 1000

func (j *jobReports) put(r member.Report) {
	j.mu.Lock()
	failures := append(j.report.Failures, r.Failures...)
	r.Failures = failures[:min(len(failures), maxFailures)]
	j.report = r
	j.mu.Unlock()
	select {
	case j.more <- struct{}{}:
	default:
	}
}

func (j *jobReports) take() member.Report {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.report
	j.report.Failures = nil
	return r
}
