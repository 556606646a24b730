package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/internal/killpoint"
)

// records is a server's file of handoffs to this node that a donor may ask about, and
// of those from it that are under way, a change a line, in JSON. It survives the
// daemon, not a host that loses power: nothing waits for the disk.
type records struct {
	path  string
	file  io.WriteCloser
	lines int
	torn  bool          // the file may end in the middle of a line, or lack what all has
	again time.Duration // when to try again, if it is
	all   map[recordKey]member.Record
	buf   []byte // for lines
}

type recordKey struct {
	from string
	id   uint64
}

// minRewrite is how many lines the file may have at least.
const minRewrite = 4096

// openRecords opens the file of a server, or makes it. It returns what is in it.
func (s state) openRecords(dsa netip.Addr) (*records, []member.Record, error) {
	r := &records{
		path: filepath.Join(s.dir, "handoffs-"+dsa.StringExpanded()+".log"),
		all:  make(map[recordKey]member.Record),
	}
	b, err := os.ReadFile(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("daemon: state: %w", err)
	}
	recs, err := parseRecords(b)
	if err != nil {
		return nil, nil, fmt.Errorf("daemon: state: %s is damaged (%w): stop the application and remove it", r.path, err)
	}
	for _, rec := range recs {
		r.note(rec)
	}
	return r, recs, r.rewrite()
}

// parseRecords reads lines. The last may be cut off: it was being written when the
// daemon was killed, which has not acted on it.
func parseRecords(b []byte) (recs []member.Record, err error) {
	for n := 1; ; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return recs, nil
		}
		var rec member.Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if rec.From == "" || rec.ID == 0 || !rec.Client.IsValid() || rec.Client.Zone() != "" || rec.State == 0 || rec.State >= member.States || rec.State > member.Forgotten && rec.To == "" {
			return nil, fmt.Errorf("line %d is incomplete", n)
		}
		recs, b = append(recs, rec), rest
	}
}

// appendRecords appends lines as json.Marshal has them. It is not asked: a handoff has six,
// and they take it ten times as long.
func appendRecords(b []byte, recs ...member.Record) []byte {
	for _, rec := range recs {
		b = appendName(append(b, `{"from":`...), rec.From)
		b = strconv.AppendUint(append(b, `,"id":`...), rec.ID, 10)
		b = append(rec.Client.AppendTo(append(b, `,"client":"`...)), '"')
		b = strconv.AppendUint(append(b, `,"state":`...), uint64(rec.State), 10)
		if rec.To != "" {
			b = appendName(append(b, `,"to":`...), rec.To)
		}
		b = append(b, "}\n"...)
	}
	return b
}

// appendName appends the name of a node, which hardly ever has what JSON escapes.
func appendName(b []byte, name string) []byte {
	for _, c := range []byte(name) {
		if c < ' ' || c >= 0x7f || strings.IndexByte(`"\<>&`, c) >= 0 {
			quoted, _ := json.Marshal(name) // a string always can be
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), name...), '"')
}

func (r *records) note(rec member.Record) {
	if rec.State == member.Forgotten {
		delete(r.all, recordKey{rec.From, rec.ID})
	} else {
		r.all[recordKey{rec.From, rec.ID}] = rec
	}
}

// add appends. When it returns without an error, they outlive the daemon. After one
// they are written with the next that can be.
func (r *records) add(recs []member.Record) error {
	for _, rec := range recs {
		r.note(rec)
	}
	if r.lines += len(recs); r.torn || r.lines > max(minRewrite, 4*len(r.all)) {
		return r.rewrite()
	}
	r.buf = appendRecords(r.buf[:0], recs...)
	asTarget := recs[0].To == "" // the points are of its stages
	if asTarget {
		killpoint.Here("record write", recs[0].State)
	}
	_, err := r.file.Write(r.buf)
	if asTarget {
		killpoint.Here("record written", recs[0].State)
	}
	if err != nil {
		r.torn = true
		return fmt.Errorf("daemon: state: %s: %w", r.path, err)
	}
	return nil
}

// mendTime is how long after a failure it is tried again.
const mendTime = time.Second

// mend writes what could not be written, once in a mendTime, and tells whether there is
// room again.
func (r *records) mend(now time.Duration) (mended bool) {
	if r == nil || !r.torn || now < r.again {
		return false
	}
	r.again = now + mendTime
	return r.rewrite() == nil
}

// rewrite leaves out what is forgotten.
func (r *records) rewrite() (err error) {
	defer func() {
		if err != nil {
			r.torn = true
			err = fmt.Errorf("daemon: state: %w", err)
		}
	}()
	var b []byte
	for _, rec := range r.all {
		b = appendRecords(b, rec)
	}
	f, err := os.CreateTemp(filepath.Dir(r.path), "handoffs-*.tmp")
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = os.Rename(f.Name(), r.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if r.file != nil {
		r.file.Close() // the old one, which is gone
	}
	r.file, r.lines, r.torn = f, len(r.all), false
	return nil
}

func (r *records) close() error { return r.file.Close() }
