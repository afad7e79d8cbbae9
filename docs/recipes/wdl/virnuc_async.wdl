version 1.0

# Two tasks that have the names, inputs and outputs of those in viral-pipelines
# (github.com/broadinstitute/viral-pipelines, pipes/WDL/tasks/tasks_metagenomics.wdl): import this file instead,
# and workflows stay as they are. What they add is optional: model_tar, and use_gpu of virnucpro.

task classify_virnucpro {
  meta {
    description: "Scores unaligned reads or contigs; both tables in one archive."
  }

  input {
    File    reads_input
    Int     expected_length = 300

    Boolean parallel = false
    Boolean persist_model = false
    Boolean use_gpu = false
    Int     batch_size = 256
    Int?    esm_batch_size
    Int?    dnabert_batch_size

    Boolean resume = false

    File?   model_tar

    String? accelerator_type
    Int?    accelerator_count
    String? gpu_type
    Int?    gpu_count
    String? vm_size
    String  docker = "virnuc-async:latest"
  }

  parameter_meta {
    reads_input: {
      description: "Unaligned reads, single or paired, or contigs.",
      patterns: ["*.bam", "*.fasta", "*.fa", "*.fasta.gz", "*.fa.gz", "*.fastq", "*.fastq.gz", "*.fq.gz"]
    }
    expected_length: { description: "Length of the model's fragments, 300 or 500. A model of another length is an error." }
    parallel: { description: "No effect: all GPUs of the machine are used." }
    persist_model: { description: "No effect: the model is loaded once." }
    use_gpu: { description: "Fail if there is no GPU. Without it the CPU is used where there is none." }
    batch_size: { description: "No effect." }
    esm_batch_size: { description: "Residue tokens per batch; by default as many as the GPU's memory allows." }
    dnabert_batch_size: { description: "No effect: both encoders see the same batches." }
    resume: { description: "Accepted. A run always goes on where it was, if its directory is still there." }
    model_tar: { description: "A tar file of a model's directory, if the model is not in the image." }
    accelerator_type: { description: "GCP: model of the GPU." }
    accelerator_count: { description: "GCP: number of GPUs." }
    gpu_type: { description: "Terra: model of the GPU." }
    gpu_count: { description: "Terra: number of GPUs." }
    vm_size: { description: "Azure: size of the machine." }  # !UnknownRuntimeKey
    docker: { description: "Image of virnuc-async with CUDA." }
  }

  String basename = sub(basename(reads_input), "\\.(bam|fasta\\.gz|fa\\.gz|fastq\\.gz|fq\\.gz|fasta|fa|fastq|fq)$", "")

  command <<<
    set -euo pipefail

    if [ -n "~{default='' model_tar}" ]; then
      mkdir -p model
      tar -xf "~{default='' model_tar}" -C model --strip-components=1
      export VIRNUC_ASYNC_MODEL="$PWD/model"
    fi

    virnucpro_cli.py "~{reads_input}" "~{basename}.virnucpro.tsv" \
      --expected-length ~{expected_length} \
      ~{true='--use-gpu' false='' use_gpu} \
      ~{true='--parallel' false='' parallel} \
      ~{true='--persistent-models' false='' persist_model} \
      --batch-size ~{batch_size} \
      ~{'--esm-batch-size=' + esm_batch_size} \
      ~{'--dnabert-batch-size=' + dnabert_batch_size} \
      ~{true='--resume' false='' resume}

    tar -czf "~{basename}.virnucpro.tgz" \
      "~{basename}.virnucpro.tsv" \
      "~{basename}.virnucpro_highestscore.csv"
  >>>

  output {
    File virnuc_pro_scores = "~{basename}.virnucpro.tgz"
  }

  runtime {
    docker: docker
    memory: "30 GB"
    cpu: 8
    disks: "local-disk 120 SSD"
    disk: "120 GB"
    gpu: true
    dx_instance_type: "mem1_ssd1_gpu2_x8"
    dx_timeout: "6H"  # !UnknownRuntimeKey
    acceleratorType: select_first([accelerator_type, "nvidia-tesla-t4"])  # !UnknownRuntimeKey
    acceleratorCount: select_first([accelerator_count, 1])  # !UnknownRuntimeKey
    gpuType: select_first([gpu_type, "nvidia-tesla-t4"])
    gpuCount: select_first([gpu_count, 1])
    vm_size: select_first([vm_size, "Standard_NC6"])  # !UnknownRuntimeKey
    preemptible: 1
    maxRetries: 1
  }
}

task virnucpro {
  meta {
    description: "Scores contigs or reads; each table is a file."
  }

  input {
    File    in_fasta

    Int     expected_length = 500
    Boolean parallel = false
    Boolean persistent_models = false
    Boolean resume = false
    Boolean v1_fallback = false  # !UnusedDeclaration
    Boolean v1_attention = false  # !UnusedDeclaration
    Int?    batch_size
    Int?    esm_batch_size
    Int?    dnabert_batch_size
    String? gpus

    Boolean use_gpu = true
    File?   model_tar

    Int     machine_mem_gb = 64
    Int     cpu = 8
    String? accelerator_type
    Int?    accelerator_count
    String? gpu_type
    Int?    gpu_count
    String? vm_size
    String  docker = "virnuc-async:latest"
  }

  parameter_meta {
    in_fasta: {
      description: "Contigs or reads: FASTA, FASTQ or BAM.",
      patterns: ["*.fasta", "*.fa", "*.fna"]
    }
    expected_length: { description: "Length of the model's fragments, 300 or 500. A model of another length is an error." }
    parallel: { description: "No effect: all GPUs of the machine are used." }
    persistent_models: { description: "No effect: the model is loaded once." }
    resume: { description: "Accepted. A run always goes on where it was, if its directory is still there." }
    v1_fallback: { description: "No effect: there is one way to compute." }
    v1_attention: { description: "No effect: there is one way to compute." }
    batch_size: { description: "No effect." }
    esm_batch_size: { description: "Residue tokens per batch; by default as many as the GPU's memory allows." }
    dnabert_batch_size: { description: "No effect: both encoders see the same batches." }
    gpus: { description: "GPUs to use, for example 0,1; by default all." }
    use_gpu: { description: "Fail if there is no GPU. Without it the CPU is used where there is none." }
    model_tar: { description: "A tar file of a model's directory, if the model is not in the image." }
    machine_mem_gb: { description: "Memory in GB." }
    cpu: { description: "CPU cores." }
    accelerator_type: { description: "GCP: model of the GPU." }
    accelerator_count: { description: "GCP: number of GPUs." }
    gpu_type: { description: "Terra: model of the GPU." }
    gpu_count: { description: "Terra: number of GPUs." }
    vm_size: { description: "Azure: size of the machine." }
    docker: { description: "Image of virnuc-async with CUDA." }
  }

  String out_basename = basename(basename(basename(in_fasta, ".fasta"), ".fa"), ".fna")

  command <<<
    set -euo pipefail

    virnucpro_cli.py --version | tee VERSION

    if [ -n "~{default='' model_tar}" ]; then
      mkdir -p model
      tar -xf "~{default='' model_tar}" -C model --strip-components=1
      export VIRNUC_ASYNC_MODEL="$PWD/model"
    fi

    virnucpro_cli.py "~{in_fasta}" predictions.tsv \
      --expected-length ~{expected_length} \
      ~{true='--use-gpu' false='' use_gpu} \
      ~{true='--parallel' false='' parallel} \
      ~{true='--persistent-models' false='' persistent_models} \
      ~{true='--resume' false='' resume} \
      ~{'--batch-size ' + batch_size} \
      ~{'--esm-batch-size ' + esm_batch_size} \
      ~{'--dnabert-batch-size ' + dnabert_batch_size} \
      ~{'--gpus ' + gpus} \
      --threads ~{cpu} \
      --verbose

    mv predictions.tsv "~{out_basename}.virnucpro.predictions.tsv"
    mv predictions_highestscore.csv "~{out_basename}.virnucpro.highestscore.tsv"

    cat /sys/fs/cgroup/memory.peak > MEM_BYTES 2>/dev/null ||
      cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes > MEM_BYTES 2>/dev/null ||
      echo 0 > MEM_BYTES
  >>>

  output {
    File   predictions_tsv   = "~{out_basename}.virnucpro.predictions.tsv"
    File   highestscore_tsv  = "~{out_basename}.virnucpro.highestscore.tsv"
    Int    max_ram_gb        = ceil(read_float("MEM_BYTES") / 1000000000)
    String virnucpro_version = read_string("VERSION")
  }

  runtime {
    docker: docker
    memory: "~{machine_mem_gb} GB"
    cpu: cpu
    disks: "local-disk 375 LOCAL"
    disk: "425 GB"
    bootDiskSizeGb: 50
    gpu: true
    dx_instance_type: "mem2_ssd1_gpu1_x8"
    acceleratorType: select_first([accelerator_type, "nvidia-tesla-t4"])  # !UnknownRuntimeKey
    acceleratorCount: select_first([accelerator_count, gpu_count, 1])  # !UnknownRuntimeKey
    gpuType: select_first([gpu_type, "nvidia-tesla-t4"])
    gpuCount: select_first([gpu_count, accelerator_count, 1])
    vm_size: select_first([vm_size, "Standard_NC6s_v3"])  # !UnknownRuntimeKey
    preemptible: 2
    maxRetries: 2
  }
}
