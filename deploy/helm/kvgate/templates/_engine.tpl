{{- /* The workload of one side: dict "top" . "part" "prefill"|"decode" */ -}}
{{- define "kvgate.engine" -}}
{{- $top := .top -}}
{{- $part := .part -}}
{{- $v := $top.Values -}}
{{- $side := index $v $part -}}
{{- $data := int $v.parallelism.data -}}
{{- $tensor := int $v.parallelism.tensor -}}
{{- $gpus := mul $data $tensor -}}
{{- $role := ternary "kv_producer" "kv_consumer" (eq $part "prefill") -}}
{{- /* How long before its signal the engine may be waited for. */ -}}
{{- $before := int (include "kvgate.noticeSeconds" $top) -}}
{{- if eq $part "prefill" -}}{{- $before = add $before (int $v.engine.kvLeaseSeconds) 5 -}}{{- end -}}
{{- $grace := add $before $v.engine.drainSeconds (include "kvgate.engineShutdownSeconds" $top | int) (include "kvgate.sidecarShutdownSeconds" $top | int) -}}
{{- /* P's sidecar stages nothing; its digests are taken where the engine's cache is. */ -}}
{{- $onGpu := or (and (eq $part "decode") (ne $v.sidecar.staging "dram")) (and (eq $v.sidecar.staging "vram") (ne $v.sidecar.verify "off")) -}}
{{- $router := and $v.gateway.enabled (eq $part "decode") -}}
{{- $watches := and $router (eq $v.router.discovery "kubernetes") -}}
{{- if $router -}}{{- $grace = add $grace (include "kvgate.podLocalShutdownSeconds" $top | int) -}}{{- end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "kvgate.name" $top }}-{{ $part }}
  labels:
    {{- include "kvgate.labels" $top | nindent 4 }}
    app.kubernetes.io/component: {{ $part }}
spec:
  {{- if not $v.autoscaling.enabled }}
  replicas: {{ $side.replicas }}
  {{- end }}
  # Old and new pods side by side would need twice the GPUs.
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 0, maxUnavailable: 1}
  selector:
    matchLabels:
      {{- include "kvgate.selector" (dict "top" $top "part" $part) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "kvgate.labels" $top | nindent 8 }}
        app.kubernetes.io/component: {{ $part }}
        {{- if $v.llmd.labels }}
        # llm-d's names: its PodMonitors and inference pools select by them.
        llm-d.ai/inferenceServing: "true"
        llm-d.ai/role: {{ $part }}
        llm-d.ai/model: {{ $top.Release.Name }}
        {{- end }}
      annotations:
        # The sidecar is not the container that one wants to see first.
        kubectl.kubernetes.io/default-container: vllm
        # Pods are made anew when the script that they mount changes.
        kvgate/scripts: {{ $top.Files.Get "files/copy-nixl.py" | sha256sum | trunc 16 | quote }}
        {{- with $side.annotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- with $v.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $watches }}
      # The account that may watch pods. Its token is in the router's container alone: neither engine nor sidecar asks the Kubernetes API.
      serviceAccountName: {{ include "kvgate.routerName" $top }}
      {{- else }}
      # Neither engine nor sidecar asks the Kubernetes API.
      {{- end }}
      automountServiceAccountToken: false
      # A Service called kvgate would put KVGATE_PORT and the like among the sidecar's own variables.
      enableServiceLinks: false
      # The sum of what may have to be waited for: notice{{ if eq $part "prefill" }} and blocks that are still needed{{ end }}, the engine's requests, the engine's end, then the sidecar's (it is told last).
      terminationGracePeriodSeconds: {{ $grace }}
      {{- with $v.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- if $v.transport.shareProcesses }}
      # UCX uses CMA between the sidecar's staging and D's engine, and CUDA IPC, only among processes that see one another.
      shareProcessNamespace: true
      {{- end }}
      initContainers:
        {{- if eq $v.nixl.from "engine" }}
        # The sidecar loads the engine's own NIXL; kvgate's image may not carry NVIDIA's wheel.
        - name: copy-nixl
          image: {{ $v.engine.image }}
          imagePullPolicy: {{ $v.engine.pullPolicy }}
          command: [python3, /scripts/copy-nixl.py, /nixl]
          securityContext:
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: scripts, mountPath: /scripts, readOnly: true}
            - {name: nixl, mountPath: /nixl}
        {{- end }}
        # A native sidecar: started before the engine, told to stop after it. It answers long before the engine is up.
        - name: kvgate
          image: {{ include "kvgate.image" $top }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          restartPolicy: Always
          args:
            - sidecar
            {{- range $v.sidecar.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - name: POD_IP
              valueFrom: {fieldRef: {fieldPath: status.podIP}}
            - {name: KVGATE_ROLE, value: {{ $part }}}
            - {name: KVGATE_ENGINE, value: "http://127.0.0.1:{{ $side.port }}"}
            # vLLM listens on the address that it tells others, not on loopback.
            - {name: KVGATE_ENGINE_SIDE_CHANNEL, value: "$(POD_IP):{{ $v.engine.sideChannelPort }}"}
            - {name: KVGATE_DATA_PARALLEL_SIZE, value: {{ $data | quote }}}
            - {name: KVGATE_TENSOR_PARALLEL_SIZE, value: {{ $tensor | quote }}}
            # The router and the other side's sidecar come over the network: with the token.
            - {name: KVGATE_LISTEN, value: "0.0.0.0:{{ $v.sidecar.port }}"}
            - {name: KVGATE_TOKEN_FILE, value: /etc/kvgate/token}
            {{- with include "kvgate.sidecarTls" $top | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            - {name: KVGATE_KV_LEASE, value: {{ $v.engine.kvLeaseSeconds }}s}
            {{- if eq $part "decode" }}
            # D's engine shares the pod's network: loopback, so that nobody else can ask.
            - {name: KVGATE_SIDE_CHANNEL_LISTEN, value: "127.0.0.1:{{ $v.sidecar.sideChannelPort }}"}
            - {name: KVGATE_STAGING_BYTES, value: {{ int $v.sidecar.stagingGiB }}GiB}
            - {name: KVGATE_VERIFY, value: {{ $v.sidecar.verify | quote }}}
            # P's address comes with each request: this is what it may be.
            - {name: KVGATE_PEER_ALLOW, value: {{ include "kvgate.peerAllow" $top | quote }}}
            {{- end }}
            {{- if $onGpu }}
            - {name: KVGATE_STAGING, value: {{ $v.sidecar.staging }}}
            {{- with $v.sidecar.gpus }}
            - {name: KVGATE_GPUS, value: {{ . | quote }}}
            {{- end }}
            # Shown, not taken from the scheduler: the engine's container has them. `utility` brings libnvidia-ml, which UCX needs.
            - {name: NVIDIA_VISIBLE_DEVICES, value: all}
            - {name: NVIDIA_DRIVER_CAPABILITIES, value: "compute,utility"}
            {{- end }}
            - {name: KVGATE_LOG, value: {{ $v.sidecar.logLevel }}}
            {{- if eq $v.nixl.from "engine" }}
            - {name: KVGATE_NIXL_LIBRARY, value: /opt/kvgate/nixl/lib}
            {{- end }}
            {{- with $v.otlpEndpoint }}
            - {name: KVGATE_OTLP_ENDPOINT, value: {{ . | quote }}}
            {{- end }}
            {{- with include "kvgate.ucx" $top | trim }}
            {{- . | nindent 12 }}
            {{- end }}
          ports:
            - {name: kvgate, containerPort: {{ $v.sidecar.port }}}
          startupProbe:
            {{- include "kvgate.sidecarProbe" (dict "top" $top "path" "/livez") | nindent 12 }}
            periodSeconds: 1
            failureThreshold: 60
          livenessProbe:
            {{- include "kvgate.sidecarProbe" (dict "top" $top "path" "/livez") | nindent 12 }}
            periodSeconds: 10
            timeoutSeconds: 5
          # At least one rank is ready, and the pod is not draining.
          readinessProbe:
            {{- include "kvgate.sidecarProbe" (dict "top" $top "path" "/readyz") | nindent 12 }}
            periodSeconds: 5
          securityContext:
            {{- if $v.sidecar.root }}
            runAsUser: 0
            capabilities: {drop: [ALL], add: [IPC_LOCK]}
            {{- else }}
            runAsNonRoot: true
            runAsUser: 65532
            runAsGroup: 65532
            capabilities: {drop: [ALL]}
            {{- end }}
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            seccompProfile: {type: RuntimeDefault}
          resources:
            {{- /* Staging of all ranks is touched sooner or later; a GiB is the process with NIXL, another one CUDA's part of it. */}}
            {{- $memory := add 1 (ternary (mul $data (int $v.sidecar.stagingGiB)) 0 (and (eq $part "decode") (ne $v.sidecar.staging "vram"))) (ternary 1 0 $onGpu) }}
            {{- $resources := merge (deepCopy $v.sidecar.resources) (dict "requests" (dict "memory" (printf "%dGi" $memory))) }}
            {{- include "kvgate.resources" (dict "resources" $resources "rdma" $v.transport "gpus" 0) | nindent 12 }}
          volumeMounts:
            - {name: token, mountPath: /etc/kvgate, readOnly: true}
            {{- if $v.tls.internal.secretName }}
            - {name: tls, mountPath: {{ include "kvgate.tlsFolder" $top }}, readOnly: true}
            {{- end }}
            # The engine's /dev/shm: UCX's shared memory between the two lies there.
            - {name: shm, mountPath: /dev/shm}
            {{- if eq $v.nixl.from "engine" }}
            - {name: nixl, mountPath: /opt/kvgate/nixl, readOnly: true}
            {{- end }}
        {{- if $router }}
        # Where a gateway sends: it takes the prefill pod from a header, and does prefill, receipt and decode on this pod's ranks.
        {{- include "kvgate.podLocalRouter" $top | trim | nindent 8 }}
        {{- end }}
      containers:
        - name: vllm
          image: {{ $v.engine.image }}
          imagePullPolicy: {{ $v.engine.pullPolicy }}
          command: [vllm, serve]
          args:
            - {{ $v.model.id | quote }}
            - --served-model-name={{ include "kvgate.servedName" $top }}
            - --port={{ $side.port }}
            - --data-parallel-size={{ $data }}
            - --tensor-parallel-size={{ $tensor }}
            {{- /* Helm 3 may hold a number as text, and "0" is true. */}}
            {{- if int $v.model.maxLen }}
            - --max-model-len={{ int $v.model.maxLen }}
            {{- end }}
            {{- if int $v.engine.blockSize }}
            - --block-size={{ int $v.engine.blockSize }}
            {{- end }}
            # `fail`: a load that went wrong must be seen; `recompute` would hide a prefill on D behind a slow answer.
            - >-
              --kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"{{ $role }}","kv_load_failure_policy":"fail","kv_connector_extra_config":{"kv_lease_duration":{{ int $v.engine.kvLeaseSeconds }}}}
            # After SIGTERM it goes on with what it has for so long; its default is not at all.
            - --shutdown-timeout={{ int $v.engine.drainSeconds }}
            {{- range concat $v.engine.extraArgs $side.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            # vLLM puts this address into the parameters of each request; the other pod's sidecar must reach it.
            - name: VLLM_NIXL_SIDE_CHANNEL_HOST
              valueFrom: {fieldRef: {fieldPath: status.podIP}}
            # Rank n listens at this port + n.
            - {name: VLLM_NIXL_SIDE_CHANNEL_PORT, value: {{ $v.engine.sideChannelPort | quote }}}
            - {name: HF_HOME, value: /models}
            {{- with $v.model.tokenSecret.name }}
            - name: HF_TOKEN
              valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $v.model.tokenSecret.key }}}}
            {{- end }}
            {{- with include "kvgate.ucx" $top | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $side.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            # llm-d's name for the port of vLLM's metrics, which its PodMonitors ask for.
            - {name: metrics, containerPort: {{ $side.port }}}
          # The weights may have to be downloaded and the engine to be compiled: an hour.
          startupProbe:
            httpGet: {path: /health, port: {{ $side.port }}}
            periodSeconds: 5
            failureThreshold: 720
          livenessProbe:
            httpGet: {path: /health, port: {{ $side.port }}}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /v1/models, port: {{ $side.port }}}
            periodSeconds: 5
            timeoutSeconds: 5
          lifecycle:
            preStop:
              {{- if eq $part "prefill" }}
              # The sidecar answers when nobody has asked for so long (routers take a moment to learn that the pod goes) and nobody needs a block of
              # this engine any more; a lease later nobody can. vLLM itself drops its blocks when it is told to end.
              httpGet:
                path: /quietz?for={{ include "kvgate.noticeSeconds" $top }}s&wait={{ $before }}s
                port: {{ $v.sidecar.port }}
              {{- else }}
              # Routers take a moment to learn that the pod goes; what comes meanwhile is served.
              sleep: {seconds: {{ include "kvgate.noticeSeconds" $top }}}
              {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            capabilities:
              # IPC_LOCK: RDMA pins memory, beyond the container's memlock limit. SYS_PTRACE: UCX's CMA reads the sidecar's staging, which
              # belongs to another user.
              add: [IPC_LOCK{{ if $v.transport.shareProcesses }}, SYS_PTRACE{{ end }}]
          resources:
            {{- include "kvgate.resources" (dict "resources" $side.resources "rdma" $v.transport "gpus" $gpus) | nindent 12 }}
          volumeMounts:
            - {name: shm, mountPath: /dev/shm}
            - {name: models, mountPath: /models}
      volumes:
        # vLLM's processes and NCCL need more than the 64 MiB that a container gets.
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ $v.engine.shmSize }}}
        - name: models
          {{- toYaml ($v.model.cache | default (dict "emptyDir" dict)) | nindent 10 }}
        - name: token
          secret:
            secretName: {{ include "kvgate.tokenSecret" $top }}
            items: [{key: {{ $v.auth.key }}, path: token}]
        {{- if $watches }}
        # What Kubernetes mounts into every container of a pod with an account, here for one of them.
        - name: api-access
          projected:
            sources:
              - serviceAccountToken: {path: token, expirationSeconds: 3600}
              - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
              - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
        {{- end }}
        {{- with $v.tls.internal.secretName }}
        - name: tls
          secret: {secretName: {{ . }}}
        {{- end }}
        {{- if eq $v.nixl.from "engine" }}
        - name: nixl
          emptyDir: {sizeLimit: 1Gi}
        - name: scripts
          configMap: {name: {{ include "kvgate.name" $top }}-scripts}
        {{- end }}
      {{- with $side.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $side.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $side.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{- /* UCX's settings, the same for engine and sidecar: each must be able to reach the other. */ -}}
{{- define "kvgate.ucx" -}}
{{- with .Values.transport.ucxTls -}}
- {name: UCX_TLS, value: {{ . | quote }}}
{{- end }}
{{- with .Values.transport.ucxNetDevices }}
- {name: UCX_NET_DEVICES, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- /* dict "resources" … "rdma" .Values.transport "gpus" N: what was given, with the devices added to requests and limits alike. */ -}}
{{- define "kvgate.resources" -}}
{{- $devices := dict -}}
{{- if .gpus }}{{- $_ := set $devices "nvidia.com/gpu" (.gpus | toString) }}{{- end }}
{{- if .rdma.rdmaResource }}{{- $_ := set $devices .rdma.rdmaResource (.rdma.rdmaCount | toString) }}{{- end }}
{{- $requests := merge (deepCopy (.resources.requests | default dict)) $devices -}}
{{- $limits := merge (deepCopy (.resources.limits | default dict)) $devices -}}
requests: {{- toYaml $requests | nindent 2 }}
{{- with $limits }}
limits: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
