package member

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/plan"
)

// This file is what moves many clients: a job is carried out by the member that
// owns them, an errand is one that it has been sent on by another. Which client
// goes next is package plan's to say.
//
//	command ──► errand ── Order ──► job ── Asked ──► application
//	        ◄──        ◄─ Report ──      ◄─ Answered ─

// Job is what a member is to do with its clients.
type Job struct {
	_    struct{} `cbor:",toarray"`
	What Task
	// To are the nodes that clients go to. Default for Drain: all others.
	To    []JobTarget
	Rate  float64 // handoffs a second; 0: no limit
	Width int     // handoffs at once; 0: the default of plan.Options
}

// JobTarget is one of them.
type JobTarget struct {
	_      struct{} `cbor:",toarray"`
	Node   string
	Weight int // of Drain
	Most   int // of Move: so many clients
}

// Task is the kind of a [Job].
type Task uint8

const (
	// Drain hands all clients off, and takes none until Undrain.
	Drain Task = iota + 1
	// Move hands some clients off.
	Move
	// Cease ends the job with the same ID; what is under way goes on.
	Cease
	// Undrain ends a Drain, and takes clients again.
	Undrain

	tasks
)

// Command has a node, by name, do a job. [Cease] with the ID of an earlier
// command ends it.
type Command struct {
	ID   uint64 // of the Answer, and of Reports after it
	Node string
	Job  Job
}

func (Command) input() {}

// check tells what of a job cannot be.
func (j *Job) check() error {
	switch {
	case j == nil || j.What == 0 || j.What >= tasks:
		return errors.New("no job")
	case len(j.To) > maxTargets:
		return fmt.Errorf("%d targets, more than %d", len(j.To), maxTargets)
	case !(j.Rate >= 0) || j.Rate > maxRate:
		return fmt.Errorf("rate %g", j.Rate)
	case j.Width < 0 || j.Width > plan.MaxWidth:
		return fmt.Errorf("%d handoffs at once, more than %d", j.Width, plan.MaxWidth)
	}
	for _, t := range j.To {
		if t.Weight < 0 || t.Weight > plan.MaxWeight || t.Most < 0 || t.Most > maxMost {
			return fmt.Errorf("node %s: weight %d, %d clients", t.Node, t.Weight, t.Most)
		}
	}
	return nil
}

// Report is how far a job is.
type Report struct {
	_        struct{} `cbor:",toarray"`
	ID       uint64   // the command's, or the order's
	Progress plan.Progress
	Failures []Failure // since the report before, the first of them
	Done     bool      // it is the last one
	Error    string    // why not everything was done
}

// Failure is a handoff of a job that has failed. The client stays where it was.
type Failure struct {
	_       struct{} `cbor:",toarray"`
	Client  netip.Addr
	To      string
	Error   string
	GivenUp bool // it will not be tried again
}

const (
	maxFailures = 64 // in one report
	maxTargets  = 1 << 10
	maxRate     = 1e6
	maxMost     = 1 << 30
	reportEvery = 200 * time.Millisecond
	// A job is heard of every reportEvery. An errand of which nothing is heard
	// for so long has failed.
	errandTimeout = 10 * time.Second
	// So long a change of how many clients there are may wait to be told.
	countEvery = time.Second
)

// job is one that this member carries out.
type job struct {
	from     string // whose errand it is; "": the command was given here
	id       uint64
	drain    bool
	run      *plan.Run
	to       map[netip.Addr]string // where a client is going
	failures []Failure
	report   time.Duration // when the next one is due
}

// errand is a command of this member's that another one carries out.
type errand struct {
	id       uint64
	node     string
	answered bool
}

// recount is that the number of clients has changed, and the others do not know.
type recount struct{}

// command takes one.
func (m *Member) command(in Command) {
	if _, known := m.cfg.Nodes[in.Node]; !known {
		m.answer(Answer{ID: in.ID, Err: fmt.Errorf("there is no node %q; there are %s", in.Node, m.names())})
		return
	}
	if in.Node == m.cfg.Name {
		if err := m.obey("", in.ID, &in.Job); in.Job.What != Cease {
			m.answer(Answer{ID: in.ID, Err: err})
			m.kick()
		}
		return
	}
	if !m.can(in.Node, FeatureOrders) && in.Job.What != Cease {
		m.answer(Answer{ID: in.ID, Err: fmt.Errorf("node %s: its release takes no orders: upgrade it, or run the command there", in.Node)})
		return
	}
	sent := m.toPeer(in.Node, &Message{Kind: Order, ID: in.ID, Job: &in.Job})
	switch {
	case in.Job.What == Cease:
		m.endErrand(m.errands[in.ID])
	case !sent:
		m.answer(Answer{ID: in.ID, Err: m.notConnected(in.Node)})
	default:
		e := &errand{id: in.ID, node: in.Node}
		m.errands[e.id] = e
		m.timers.Set(e, m.now+errandTimeout)
	}
}

func (m *Member) endErrand(e *errand) {
	if e != nil {
		m.timers.Remove(e)
		delete(m.errands, e.id)
	}
}

// reported is what another member has to say of an errand.
func (m *Member) reported(from string, msg *Message) {
	e := m.errands[msg.ID]
	if e == nil || e.node != from {
		return
	}
	m.timers.Set(e, m.now+errandTimeout)
	r := *msg.Report
	if !e.answered {
		e.answered = true
		if r.Done && r.Error != "" {
			m.answer(Answer{ID: e.id, Err: fmt.Errorf("node %s: %s", from, r.Error)})
			m.endErrand(e)
			return
		}
		m.answer(Answer{ID: e.id})
	}
	r.ID = e.id
	m.out.Reports = append(m.out.Reports, r)
	if r.Done {
		m.endErrand(e)
	}
}

// lostErrand is that nothing more will be heard of one.
func (m *Member) lostErrand(e *errand, why string) {
	if e.answered {
		m.out.Reports = append(m.out.Reports, Report{ID: e.id, Done: true, Error: why})
	} else {
		m.answer(Answer{ID: e.id, Err: errors.New(why)})
	}
	m.endErrand(e)
}

// ordered is an order of another member.
func (m *Member) ordered(from string, msg *Message) {
	err := m.obey(from, msg.ID, msg.Job)
	r := Report{Done: m.job == nil || msg.Job.What == Undrain}
	if err != nil {
		r.Done, r.Error = true, err.Error()
	}
	switch {
	case msg.Job.What == Cease: // nobody waits
	case err == nil && !r.Done:
		m.job.report = m.now // that is the answer
		m.kick()
	default:
		m.toPeer(from, &Message{Kind: Reported, ID: msg.ID, Report: &r})
	}
}

// obey begins or ends a job.
func (m *Member) obey(from string, id uint64, what *Job) error {
	switch what.What {
	case Cease:
		if j := m.job; j != nil && j.from == from && j.id == id {
			m.dismiss(j)
		}
		return nil
	case Undrain:
		if m.job != nil && m.job.drain {
			m.finish(m.job, "the node was taken back into service")
		}
		if m.draining {
			m.draining = false
			m.event(api.EventInService, netip.Addr{}, "", "")
			m.introduce()
		}
		return nil
	}
	if j := m.job; j != nil {
		by := "here"
		if j.from != "" {
			by = "on node " + j.from
		}
		return fmt.Errorf("clients of node %s are being moved already, by a command given %s", m.cfg.Name, by)
	}
	if !m.attached && len(m.clients) > 0 {
		return fmt.Errorf("node %s has no application attached that could hand its clients off", m.cfg.Name)
	}
	targets, err := m.targets(what)
	if err != nil {
		return err
	}
	if what.What == Drain {
		if !slices.ContainsFunc(targets, func(t plan.Target) bool { return m.takes(t.Name) }) && len(m.clients) > 0 {
			return fmt.Errorf("no other node takes the clients of node %s: one must be connected, with an application that takes clients, and not be drained itself", m.cfg.Name)
		}
		if !m.draining {
			m.draining = true
			m.event(api.EventDraining, netip.Addr{}, "", fmt.Sprintf("%d clients", len(m.clients)))
			m.introduce()
		}
	}
	clients := make([]plan.Client, 0, len(m.clients))
	for _, c := range m.clients {
		clients = append(clients, plan.Client{Addr: c.addr, Connections: c.connections})
	}
	j := &job{
		from: from, id: id, drain: what.What == Drain, to: make(map[netip.Addr]string), report: m.now + reportEvery,
		run: plan.NewRun(m.now, clients, targets, plan.Options{Rate: what.Rate, Width: what.Width}),
	}
	for _, t := range targets {
		j.run.Set(t.Name, m.takes(t.Name))
	}
	m.job = j
	return nil
}

// targets are those of a job.
func (m *Member) targets(what *Job) (all []plan.Target, err error) {
	to := what.To
	if len(to) == 0 && what.What == Drain {
		for name := range m.Peers() {
			to = append(to, JobTarget{Node: name})
		}
	}
	for _, t := range to {
		_, known := m.cfg.Nodes[t.Node]
		switch {
		case !known:
			return nil, fmt.Errorf("there is no node %q; there are %s", t.Node, m.names())
		case t.Node == m.cfg.Name:
			return nil, fmt.Errorf("node %s has its clients already", t.Node)
		case what.What == Move && t.Most < 1:
			return nil, fmt.Errorf("how many clients go to node %s is not said", t.Node)
		case slices.ContainsFunc(all, func(p plan.Target) bool { return p.Name == t.Node }):
			return nil, fmt.Errorf("node %s is named twice", t.Node)
		}
		p := plan.Target{Name: t.Node, Weight: t.Weight, Most: t.Most}
		if hello := m.up[t.Node]; hello != nil {
			p.Clients = hello.Clients
		}
		all = append(all, p)
	}
	return all, nil
}

// takes tells whether a node takes clients, as far as it has said.
func (m *Member) takes(name string) bool {
	hello := m.up[name]
	return hello != nil && hello.Attached && hello.Accepts && !hello.Draining
}

// kick goes on with the job.
func (m *Member) kick() {
	j := m.job
	if j == nil {
		return
	}
	for {
		addr, to, ok := j.run.Next(m.now)
		if !ok {
			break
		}
		c := m.clients[addr]
		switch err := m.mayGo(c, to); {
		case c == nil:
			j.run.End(m.now, addr, plan.Gone)
		case err != nil:
			m.jobFailed(j, addr, to, err.Error())
		default:
			j.to[addr] = to
			id := m.newID()
			m.asked[id] = asked{job: j, client: addr}
			m.toApp(&api.Message{Kind: api.Asked, ID: id, Client: addr, To: to})
		}
	}
	if j.run.Done() && j.drain {
		for _, c := range m.sorted() { // that have come meanwhile
			j.run.Add(c.addr)
		}
		if at, ok := j.run.Deadline(); ok {
			m.timers.Set(j, max(at, m.now))
			return
		}
	}
	if j.run.Done() {
		m.finish(j, "")
		return
	}
	if m.now >= j.report {
		j.report = m.now + reportEvery
		m.tell(j, Report{})
	}
	at := j.report
	if next, ok := j.run.Deadline(); ok {
		at = min(at, next)
	}
	m.timers.Set(j, at)
}

// jobAnswered is that the application has answered.
func (m *Member) jobAnswered(j *job, addr netip.Addr, why string) {
	to := j.to[addr]
	delete(j.to, addr)
	switch {
	case m.job != j:
		return // ended meanwhile
	case why == "":
		j.run.End(m.now, addr, plan.Moved)
	case m.clients[addr] == nil:
		j.run.End(m.now, addr, plan.Gone) // it has gone by itself, or another has it
	default:
		m.jobFailed(j, addr, to, why)
	}
	m.kick()
}

func (m *Member) jobFailed(j *job, addr netip.Addr, to, why string) {
	givenUp := j.run.End(m.now, addr, plan.Failed)
	if len(j.failures) < maxFailures || givenUp && len(j.failures) < 2*maxFailures {
		j.failures = append(j.failures, Failure{Client: addr, To: to, Error: why, GivenUp: givenUp})
	}
}

// tell tells whoever gave the command.
func (m *Member) tell(j *job, r Report) {
	r.Progress, r.Failures = j.run.Progress(m.now), j.failures
	j.failures = nil
	if j.from == "" {
		r.ID = j.id
		m.out.Reports = append(m.out.Reports, r)
	} else {
		m.toPeer(j.from, &Message{Kind: Reported, ID: j.id, Report: &r})
	}
}

// finish ends a job with its last report.
func (m *Member) finish(j *job, why string) {
	p := j.run.Progress(m.now)
	switch {
	case why != "":
	case p.Left > 0:
		why = "no node takes clients any more"
	case p.Stuck > 0:
		why = fmt.Sprintf("clients whose handoffs have failed each time, and who are served here as before: %d", p.Stuck)
	}
	m.tell(j, Report{Done: true, Error: why})
	if j.drain {
		m.event(api.EventDrained, netip.Addr{}, "", cmp.Or(why, fmt.Sprintf("%d clients have gone", p.Moved)))
	}
	m.dismiss(j)
}

func (m *Member) dismiss(j *job) {
	m.timers.Remove(j)
	m.job = nil
}

// heardOf is that a member has come, has gone, or has said something else of
// itself than before.
func (m *Member) heardOf(name string, before *Message) {
	after := m.up[name]
	if (before != nil && before.Draining) != (after != nil && after.Draining) {
		m.toApp(&api.Message{Kind: api.ConfigChanged, Config: m.sessionConfig()})
	}
	if m.job != nil {
		m.job.run.Set(name, m.takes(name))
		m.kick()
	}
}

// lostMember ends what was done for a member, or by it.
func (m *Member) lostMember(name string) {
	if m.job != nil && m.job.from == name {
		m.dismiss(m.job)
	}
	for _, id := range slices.Sorted(maps.Keys(m.errands)) {
		if e := m.errands[id]; e.node == name {
			m.lostErrand(e, fmt.Sprintf("the connection to node %s is lost, where it ends with that; what has moved has moved: run it again", name))
		}
	}
}

// counted sees to it that the others learn how many clients there are.
func (m *Member) counted() {
	if !m.recounting && len(m.clients) != m.told {
		m.recounting = true
		m.timers.Set(recount{}, m.now+countEvery)
	}
}

// Draining tells whether this member is being drained, or has been.
func (m *Member) Draining() bool { return m.draining }
