package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Between two requests of one client.
const pace = 5 * time.Millisecond

// Requests on a connection that is kept: an odd number, so that each key comes first on some.
const keptFor = 25

// Longer is hung.
const patience = 10 * time.Second

// What requests came to, by "MODE KEY RESULT": the mode is "kept" or "new", RESULT the name that answered, or what
// went wrong.
type tally struct {
	mutex sync.Mutex
	// How many.
	Count map[string]int `json:"count"`
	// When the first and the last of them began, in milliseconds of Unix time.
	Span map[string][2]int64 `json:"span"`
	// How long the slowest took, in milliseconds.
	Slowest int64 `json:"slowest"`
}

func (t *tally) add(what string, began time.Time) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.Count[what]++
	span, known := t.Span[what]
	if !known {
		span[0] = began.UnixMilli()
	}
	span[1] = began.UnixMilli()
	t.Span[what] = span
	t.Slowest = max(t.Slowest, time.Since(began).Milliseconds())
}

// Asks a URL until a file exists, with each key in turn ("-" is none), on connections that are kept for some requests
// and on new ones; then says what came of it. Nothing is asked twice: what an ordinary client would repeat is counted.
func load(until, to string, keys []string) error {
	target, err := url.Parse(to)
	if err != nil {
		return err
	}
	result := tally{Count: map[string]int{}, Span: map[string][2]int64{}}
	var clients sync.WaitGroup
	for mode, requests := range map[string]int{"kept": keptFor, "new": 1} {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for turn := 0; !exists(until); {
				turn = result.converse(mode, target, keys, turn, requests)
			}
		}()
	}
	clients.Wait()
	return json.NewEncoder(os.Stdout).Encode(&result)
}

// One connection. Gives the turn of the next.
func (t *tally) converse(mode string, target *url.URL, keys []string, turn, requests int) int {
	began := time.Now()
	connection, err := net.DialTimeout("tcp", target.Host, patience)
	if err != nil {
		t.add(fmt.Sprintf("%s - failed: connect, %s", mode, reason(err)), began)
		time.Sleep(pace)
		return turn
	}
	defer connection.Close()
	reader := bufio.NewReader(connection)
	for range requests {
		key := keys[turn%len(keys)]
		turn++
		name, err := exchange(connection, reader, target, key, requests == 1)
		if err != nil {
			t.add(fmt.Sprintf("%s %s failed: %s", mode, key, reason(err)), began)
			time.Sleep(pace)
			return turn
		}
		t.add(fmt.Sprintf("%s %s %s", mode, key, name), began)
		time.Sleep(pace)
		began = time.Now()
	}
	return turn
}

func exchange(to net.Conn, from *bufio.Reader, target *url.URL, key string, last bool) (string, error) {
	to.SetDeadline(time.Now().Add(patience))
	request, err := http.NewRequest(http.MethodGet, target.String(), nil)
	if err != nil {
		return "", err
	}
	request.Close = last
	if key != "-" {
		request.Header.Set("Baggage", "okteto-divert="+key)
	}
	if err := request.Write(to); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(from, request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	name, _, _ := strings.Cut(string(body), "\n")
	if response.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d: %s", response.StatusCode, name), nil
	}
	return name, nil
}

// The same words for the same fault: no addresses.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EPIPE):
		return "broken pipe"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "hung"
	default:
		return err.Error()
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
