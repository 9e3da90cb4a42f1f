"""A consumer that others could have written: pika reads, the official CloudEvents library parses.

Usage: rabbit_consumer.py URL QUEUE COUNT. Reads COUNT messages, in structured or binary mode,
acknowledges them, and prints one line of JSON for each: what it understood.
"""

import json
import sys

import pika
from cloudevents.core.bindings.amqp import AMQPMessage, from_amqp_event

url, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.basic_qos(prefetch_count=50)
read = 0
for method, properties, body in channel.consume(queue, inactivity_timeout=30):
    if method is None:
        sys.exit(f"only {read} of {count} messages came")
    headers = properties.headers or {}
    event = from_amqp_event(
        AMQPMessage(
            properties={"content-type": properties.content_type},
            application_properties=headers,
            application_data=body,
        )
    )
    assert properties.message_id == event.get_id(), "the id of the message is that of the event"
    assert properties.type == event.get_type()
    assert properties.delivery_mode == 2
    data = event.get_data()
    print(
        json.dumps(
            {
                "routing_key": method.routing_key,
                "id": event.get_id(),
                "source": event.get_source(),
                "type": event.get_type(),
                "subject": event.get_subject(),
                "time": event.get_time().timestamp(),
                "sequence": event.get_extension("sequence"),
                "slot": headers["x-flux-slot"],
                "data": data.decode() if isinstance(data, bytes) else data,
            }
        )
    )
    channel.basic_ack(method.delivery_tag)
    read += 1
    if read == count:
        break
channel.cancel()
connection.close()
