// Sends the message on standard input with net/smtp: arguments MX, sender, recipient. Without any, prints the version.
package main

import (
	"fmt"
	"io"
	"log"
	"net/smtp"
	"os"
	"runtime"
)

func main() {
	if len(os.Args) == 1 {
		fmt.Println(runtime.Version())
		return
	}
	message, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = smtp.SendMail(os.Args[1]+":25", nil, os.Args[2], os.Args[3:], message)
	}
	if err != nil {
		log.Fatal(err)
	}
}
