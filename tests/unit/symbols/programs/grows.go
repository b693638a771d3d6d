// Every call of release finds too small a stack: its prologue grows it and starts the function again.
package main

type Conn struct {
	next *Conn
	id   int64
}

var pool *Conn
var sum int

//go:noinline
func release(c *Conn) {
	var pad [6000]byte
	pad[int(c.id)%len(pad)] = 1
	c.next = pool
	pool = c
	sum += int(pad[5])
}

func main() {
	for i := 0; i < 20; i++ {
		c := &Conn{id: int64(i)}
		done := make(chan bool)
		go func() { release(c); done <- true }()
		<-done
	}
	println("sum", sum)
}
