// Prints go-durations.tsv: what Go's time.ParseDuration answers. Run once, `go run go-durations.go > go-durations.tsv`.
package main

import (
	"fmt"
	"math/rand"
	"strings"
	"time"
)

var fixed = []string{
	"", "0", "+0", "-0", "00", "0s", "-0s", "5", "5s", "+5s", "-5s", "++5s", "+-5s", "30s", "1478s", "5.0s", "5.6s", "5.s", ".5s",
	"-.5s", ".s", "+.s", ".", "-", "+", "s", "-s", "..5s", "1..5s", "1.2.3s", "1.0s", "1.00s", "1.004s", "1.0040s", "100.00100s", "10ns", "11us", "12µs", "12μs",
	"13ms", "14s", "15m", "16h", "1d", "1w", "1y", "1S", "1H", "1MS", "1 s", " 1s", "1s ", "1s\u00a0", "3h30m", "10.5s4m", "-2m3.4s", "1h2m3s4ms5us6ns",
	"39h9m14.425s", "52763797000ns", "0.3333333333333333333h", "9007199254740993ns", "9223372036854775807ns", "9223372036854775808ns",
	"-9223372036854775807ns", "-9223372036854775808ns", "-9223372036854775809ns", "9223372036854775.807us", "9223372036854775.808us",
	"9223372036s854ms775us807ns", "9223372036s854ms775us808ns", "-9223372036s854ms775us808ns", "-9223372036854775.808us", "2562047h47m16.854775807s",
	"2562047h47m16.854775808s", "-2562047h47m16.854775808s", "2562048h", "3000000h", "0.100000000000000000000h", "0.830103483285477580700h",
	"0.9223372036854775807h", "0.9223372036854775808h", "0.9223372036854775809h", "0.92233720368547758079h", "0.9999999999999999999s", "1h-2m", "1h+2m", "0h1s", "1s1s", "1s1h", "300ms", "1.5h", "2h45m", "1e3s", "0x10s", "1_000s", "１s", "1.５s",
	"99999999999999999999s", "18446744073709551616ns", "922337203685477580h", "1h2", "1hm", "ns", "1n", "1u", "1µ", "1us1µs1μs", "٣s", "1m s", "1ms2", "1mss", "1sm",
}

func main() {
	fmt.Println("# Made by go-durations.go: a text, a tab, nanoseconds or `error`, as Go's time.ParseDuration answers.")
	seen := map[string]bool{}
	put := func(text string) {
		if seen[text] || strings.ContainsAny(text, "\t\n\r") || strings.HasPrefix(text, "#") {
			return
		}
		seen[text] = true
		if d, err := time.ParseDuration(text); err != nil {
			fmt.Printf("%s\terror\n", text)
		} else {
			fmt.Printf("%s\t%d\n", text, int64(d))
		}
	}
	for _, text := range fixed {
		put(text)
	}
	random := rand.New(rand.NewSource(1))
	pick := func(of []string) string { return of[random.Intn(len(of))] }
	digits := func(most int) string {
		var b strings.Builder
		for n := random.Intn(most + 1); n > 0; n-- {
			b.WriteByte(byte('0' + random.Intn(10)))
		}
		return b.String()
	}
	units := []string{"ns", "us", "µs", "μs", "ms", "s", "m", "h"}
	for range 1800 { // near the grammar
		text := pick([]string{"", "", "", "-", "+"})
		for n := 1 + random.Intn(4); n > 0; n-- {
			text += digits(pick2(random, 3, 20))
			if random.Intn(2) == 0 {
				text += "." + digits(pick2(random, 4, 22))
			}
			text += pick(units)
		}
		put(text)
	}
	alphabet := strings.Split("0123456789.+-nuµμmsh ", "")
	for range 600 { // anything
		text := ""
		for n := 1 + random.Intn(6); n > 0; n-- {
			text += pick(alphabet)
		}
		put(text)
	}
}

func pick2(random *rand.Rand, often, rarely int) int {
	if random.Intn(4) == 0 {
		return rarely
	}
	return often
}
