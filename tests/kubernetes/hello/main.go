// What the tests of the cluster run in pods. `hello serve PORT` answers every request with the pod's name; `hello get URL` prints the
// status and the body of one answer, and fails if none came.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fail("usage: hello serve PORT | hello get URL")
	}
	if os.Args[1] == "serve" {
		serve(os.Args[2])
	}
	get(os.Args[2])
}

func serve(port string) {
	pod, err := os.Hostname()
	if err != nil {
		fail(err)
	}
	answer := func(response http.ResponseWriter, _ *http.Request) { fmt.Fprintln(response, pod) }
	fail(http.ListenAndServe(":"+port, http.HandlerFunc(answer)))
}

func get(url string) {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		fail(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		fail(err)
	}
	fmt.Printf("%d %s", response.StatusCode, body)
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}
