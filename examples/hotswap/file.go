//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/distributed-servers/ds/stack"
)

const (
	maxRequest = 16 << 10 // octets of a request's head
	chunk      = 64 << 10 // octets written at a time
)

// fileMode serves the files of a directory over a small part of HTTP/1.1: GET
// and HEAD, one request after another on a connection.
type fileMode struct{ root *os.Root }

func newFileMode(dir string) (*fileMode, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &fileMode{root}, nil
}

func (m *fileMode) open() session { return &download{root: m.root} }

// download is the session of a client of a fileMode. The file itself moves as
// a descriptor: the successor goes on with the same file even if another has
// its name by now.
type download struct {
	In     []byte // received, not yet answered
	Out    []byte // the response's head, as far as not yet written
	Offset int64  // the body goes on here
	Size   int64  // and ends here
	Last   bool   // close after this response

	root *os.Root
	file *os.File // of which the body is; nil: no body
}

func (m *fileMode) restore(state []byte, files []*os.File) (session, error) {
	d := &download{}
	err := json.Unmarshal(state, d)
	switch {
	case err != nil:
	case len(d.In) > maxRequest || len(d.Out) > maxRequest:
		err = errors.New("too long")
	case d.Offset < 0 || d.Size < d.Offset || (d.Size > d.Offset) != (len(files) == 1) || len(files) > 1:
		err = fmt.Errorf("octets %d to %d of %d file(s)", d.Offset, d.Size, len(files))
	}
	if err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("state of a download: %w", err)
	}
	d.root = m.root
	if len(files) == 1 {
		d.file = files[0]
	}
	return d, nil
}

func (d *download) save() (state []byte, files []syscall.Conn) {
	state, err := json.Marshal(d)
	if err != nil {
		panic(err) // octets and numbers: cannot be
	}
	if d.file != nil {
		files = append(files, d.file)
	}
	return state, files
}

func (d *download) close() {
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
}

func (d *download) run(ctx context.Context, c *stack.Conn) error {
	defer interruptible(ctx, c)()
	buf := make([]byte, chunk)
	for {
		if err := d.respond(c, buf); err != nil {
			return err
		}
		if d.Last {
			return nil
		}
		for !d.request() {
			if len(d.In) >= maxRequest {
				return errors.New("request too long")
			}
			n, err := c.Read(buf[:min(len(buf), maxRequest-len(d.In))])
			d.In = append(d.In, buf[:n]...)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
}

// respond writes what is left of the response. After each Write the session
// says exactly how far it got.
func (d *download) respond(c *stack.Conn, buf []byte) error {
	for len(d.Out) > 0 {
		n, err := c.Write(d.Out)
		d.Out = d.Out[n:]
		if err != nil {
			return err
		}
	}
	for d.Offset < d.Size {
		n, err := d.file.ReadAt(buf[:min(int64(len(buf)), d.Size-d.Offset)], d.Offset)
		if n == 0 {
			return fmt.Errorf("file has become shorter: %w", err)
		}
		n, err = c.Write(buf[:n])
		d.Offset += int64(n)
		if err != nil {
			return err
		}
	}
	d.close()
	return nil
}

// request takes a request, if there is a whole one, and prepares the response.
func (d *download) request() bool {
	head, rest, ok := bytes.Cut(d.In, []byte("\r\n\r\n"))
	if !ok {
		return false
	}
	d.In = bytes.Clone(rest)
	d.Offset, d.Size = 0, 0
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("\r\n\r\n"))))
	if err != nil || req.ContentLength != 0 {
		d.answer(http.StatusBadRequest, true)
		return true
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		d.answer(http.StatusMethodNotAllowed, req.Close)
		return true
	}
	f, err := d.root.Open(strings.TrimPrefix(path.Clean("/"+req.URL.Path), "/"))
	if err != nil {
		d.answer(http.StatusNotFound, req.Close)
		return true
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		d.answer(http.StatusNotFound, req.Close)
		return true
	}
	d.Size = info.Size()
	d.answer(http.StatusOK, req.Close)
	if req.Method == http.MethodHead {
		d.Size = 0
	}
	if d.Size == 0 {
		f.Close()
	} else {
		d.file = f
	}
	return true
}

func (d *download) answer(status int, last bool) {
	d.Last = last
	connection := "keep-alive"
	if last {
		connection = "close"
	}
	d.Out = fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n",
		status, http.StatusText(status), d.Size, connection)
}
