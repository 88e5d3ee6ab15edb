// What runs in the pods of the tests' cluster, in one static binary:
//
//	tiny                     does nothing, as the first process of a pod
//	tiny serve PORT [URL]    answers with its name and what URL answered, and passes baggage on
//	tiny get [-H FIELD] URL  prints what URL answers
//	tiny private PROGRAM…    runs it in a cgroup namespace of its own, where it may have one
//	tiny load FILE URL KEY…  asks URL with each key in turn until FILE exists, and says what came of it
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// The fields that say whose a request is, and the question who answered it.
var passedOn = []string{"Baggage", "Baggage.okteto-Divert", "X-Divert-Debug"}

func main() {
	switch args := os.Args[1:]; {
	case len(args) == 0:
		pause()
	case args[0] == "serve" && len(args) <= 3 && len(args) > 1:
		next := ""
		if len(args) == 3 {
			next = args[2]
		}
		fail(serve(args[1], next))
	case args[0] == "get" && len(args) > 1:
		fail(get(args[1:]))
	case args[0] == "private" && len(args) > 1:
		fail(private(args[1:]))
	case args[0] == "load" && len(args) > 3:
		fail(load(args[1], args[2], args[3:]))
	default:
		fail(fmt.Errorf("usage: tiny [serve PORT [URL] | get [-H FIELD] URL | load FILE URL KEY… | private PROGRAM…]"))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// The first process of a pod inherits the orphans of the others when they share its process namespace.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for got := range signals {
		if got != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// As containers are run on nodes that have cgroup2 alone.
func private(command []string) error {
	// The namespace is the thread's.
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil && err != syscall.EPERM {
		return fmt.Errorf("a cgroup namespace: %w", err)
	}
	return syscall.Exec(command[0], command, os.Environ())
}

// The first line of an answer is NAME of the environment, else the host name, which is the pod's; the second, with
// a query "?seen", what the server sees of the request; then what comes from the next.
func serve(port, next string) error {
	name := os.Getenv("NAME")
	if name == "" {
		name, _ = os.Hostname()
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		answer := &strings.Builder{}
		fmt.Fprintln(answer, name)
		if r.URL.RawQuery == "seen" {
			local := r.Context().Value(http.LocalAddrContextKey)
			fmt.Fprintf(answer, "%s %s from %s at %s: %v\n", r.Method, r.Host, r.RemoteAddr, local, r.Header)
		}
		if next != "" {
			if err := ask(answer, next, r.Header); err != nil {
				http.Error(w, fmt.Sprintf("%s: %v", name, err), http.StatusBadGateway)
				return
			}
		}
		io.WriteString(w, answer.String())
	}
	server := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(handler)}
	// The first process of a container ignores signals that it has no handler for.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-signals; os.Exit(0) }()
	fmt.Println(name, "listens on", port)
	return server.ListenAndServe()
}

func get(args []string) error {
	header := http.Header{}
	for len(args) > 2 && args[0] == "-H" {
		field, value, _ := strings.Cut(args[1], ":")
		header.Add(field, strings.TrimSpace(value))
		args = args[2:]
	}
	for _, url := range args {
		if err := request(os.Stdout, url, header); err != nil {
			return err
		}
	}
	return nil
}

func ask(to io.Writer, url string, from http.Header) error {
	header := http.Header{}
	for _, field := range passedOn {
		if values := from.Values(field); len(values) > 0 {
			header[http.CanonicalHeaderKey(field)] = values
		}
	}
	return request(to, url, header)
}

var client = http.Client{Timeout: 10 * time.Second}

func request(to io.Writer, url string, header http.Header) error {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header = header
	// Of this field the client takes no note.
	request.Host = header.Get("Host")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 400 {
		body, _ := io.ReadAll(response.Body)
		return fmt.Errorf("%s answered %s: %s", url, response.Status, body)
	}
	_, err = io.Copy(to, response.Body)
	return err
}
