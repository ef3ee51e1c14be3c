"""Load generator, data sets, reports and plots. A client: it imports nothing of the three houses.

options  what the flags mean                     serve     one run against a server, from flags to report
datasets prompts and output lengths              sweep     many of them, one table, plots
arrivals when each request is due                offline   `throughput` and `latency` of an engine given by the caller
http     bytes → body → events                   startup   from the command to ready
exchange one request's timeline                  ceiling   what this client can take, against `stub`
load     the requests on their way; `workers` shares them among processes
metrics  timelines → figures; `report` prints and saves them; `plots` draws them
"""
