// Finds a Flux-KV node as any Go program would: etcd's official client and gRPC naming resolver.
//
// Usage: naming ETCD TARGET. Prints the health of flux.kv.v1.Kv as a node that was found says it.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}, DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	builder, err := resolver.NewBuilder(client)
	if err != nil {
		log.Fatal(err)
	}
	// grpc-go makes the authority of the target's path, and an authority with escaped slashes is not
	// one: Rust's HTTP/2 servers reset such a stream.
	connection, err := grpc.NewClient(os.Args[2], grpc.WithResolvers(builder),
		grpc.WithAuthority("flux.kv.v1.Kv"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	request := &grpc_health_v1.HealthCheckRequest{Service: "flux.kv.v1.Kv"}
	answer, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, request, grpc.WaitForReady(true))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Status)
}
