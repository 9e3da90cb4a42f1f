// The key-value service from Go, over gRPC: main [HOST:PORT]. The package kv is generated from the
// project's .proto files by the script run beside this file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	kv "fluxkv.example/client/gen/flux/kv/v1"
)

func main() {
	address := "127.0.0.1:50052"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		log.Fatal(err)
	}
}

func run(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := kv.NewKvClient(connection)
	// Every call has a deadline: without one it may wait for ever.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	set := &kv.SetRequest{Key: []byte("go"), Value: []byte("hello"), Expiry: &kv.SetRequest_TtlMs{TtlMs: 60_000}}
	if _, err := client.Set(ctx, set); err != nil {
		return err
	}
	answer, err := client.Get(ctx, &kv.GetRequest{Key: []byte("go")})
	if err != nil {
		return err
	}
	fmt.Printf("go = %s\n", answer.Value)

	for i := 0; i < 3; i++ {
		by := int64(1)
		count, err := client.Increment(ctx, &kv.IncrementRequest{Key: []byte("go:count"), By: &by})
		if err != nil {
			return err
		}
		if i == 2 {
			fmt.Printf("go:count = %d\n", count.Value)
		}
	}

	scan, err := client.Scan(ctx, &kv.ScanRequest{Prefix: []byte("go"), KeysOnly: true})
	if err != nil {
		return err
	}
	var keys []string
	for {
		batch, err := scan.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, entry := range batch.Entries {
			keys = append(keys, string(entry.Key))
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Printf("found %s\n", key)
	}
	if _, err := client.Delete(ctx, &kv.DeleteRequest{Key: []byte("go:count")}); err != nil {
		return err
	}
	_, err = client.Get(ctx, &kv.GetRequest{})
	fmt.Printf("without a key: %s\n", status.Code(err))
	return nil
}
