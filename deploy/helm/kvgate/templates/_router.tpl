{{- /* What every router is told, wherever it runs: dict "top" . "drain" SECONDS */ -}}
{{- define "kvgate.routerArgs" -}}
{{- $v := .top.Values -}}
- --gate={{ $v.router.gate }}
- --rank-pairing={{ $v.router.rankPairing }}
- --policy={{ $v.router.policy }}
# It is not on the wire: what the prefill engines are started with.
- --kv-lease={{ $v.engine.kvLeaseSeconds }}s
- --drain-timeout={{ .drain }}s
- --log={{ $v.router.logLevel }}
{{- with $v.otlpEndpoint }}
- --otlp-endpoint={{ . }}
{{- end }}
{{- range $v.router.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- /* The router in a decode pod, behind a gateway: where llm-d has its routing proxy. */ -}}
{{- define "kvgate.podLocalRouter" -}}
{{- $v := .Values -}}
{{- if ne (int $v.gateway.port) (int $v.prefill.port) }}
{{- fail "gateway.port: an InferencePool has one target port for prefill and decode pods, so it must be prefill.port" }}
{{- end }}
{{- if eq (int $v.gateway.port) (int $v.decode.port) }}
{{- fail "gateway.port: decode pods need decode.port for vLLM itself" }}
{{- end }}
{{- if and (eq $v.router.discovery "static") (not $v.gateway.prefillAllow) }}
{{- fail "gateway.prefillAllow: with router.discovery static, nobody else says which prefill pods a header may name" }}
{{- end }}
{{- if or $v.tls.clients.secretName $v.tls.clients.clientCa.secretName }}
{{- fail "tls.clients: a gateway asks the pods of its pool without TLS; its own listener has the clients' certificate" }}
{{- end }}
{{- if not $v.gateway.picker }}
{{- fail "gateway.picker: nobody is not everybody: name who may read the engines' metrics" }}
{{- end }}
- name: router
  image: {{ include "kvgate.image" . }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  restartPolicy: Always
  args:
    - router
    - --pod-local
    - --decode=http://127.0.0.1:{{ $v.decode.port }},sidecar={{ include "kvgate.sidecarScheme" . }}://127.0.0.1:{{ $v.sidecar.port }}
    # A header names the prefill pod: only one that is known here is asked.
    {{- if eq $v.router.discovery "kubernetes" }}
    - --service-discovery
    - --prefill-selector=app.kubernetes.io/name=kvgate app.kubernetes.io/instance={{ .Release.Name }} app.kubernetes.io/component=prefill
    - --service-discovery-namespace={{ .Release.Namespace }}
    - --service-discovery-port={{ $v.prefill.port }}
    {{- else if eq $v.router.discovery "dns" }}
    - --dns-discovery=5s
    - --prefill=http://{{ include "kvgate.name" . }}-prefill:{{ $v.prefill.port }},sidecar={{ include "kvgate.sidecarScheme" . }}://{{ include "kvgate.name" . }}-prefill:{{ $v.sidecar.port }}
    {{- end }}
    {{- with $v.gateway.prefillAllow }}
    - --prefill-allow={{ join " " . }}
    {{- end }}
    - --sidecar-discovery-port={{ $v.sidecar.port }}
    - --intra-node-data-parallel-size={{ $v.parallelism.data }}
    - --host=0.0.0.0
    - --port={{ $v.gateway.port }}
    - --admin-host=0.0.0.0
    - --admin-port={{ $v.gateway.metricsPort }}
    - --token-file=/etc/kvgate/token
    {{- with include "kvgate.routerTls" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- include "kvgate.routerArgs" (dict "top" . "drain" (include "kvgate.podLocalDrainSeconds" .)) | nindent 4 }}
  ports:
    - {name: http, containerPort: {{ $v.gateway.port }}}
    - {name: router-metrics, containerPort: {{ $v.gateway.metricsPort }}}
  startupProbe:
    httpGet: {path: /livez, port: http}
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet: {path: /livez, port: http}
    periodSeconds: 10
    timeoutSeconds: 5
  # At least one rank of this pod can take work.
  readinessProbe:
    httpGet: {path: /readyz, port: http}
    periodSeconds: 5
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  resources: {{- toYaml $v.router.resources | nindent 4 }}
  volumeMounts:
    - {name: token, mountPath: /etc/kvgate, readOnly: true}
    {{- if $v.tls.internal.secretName }}
    - {name: tls, mountPath: {{ include "kvgate.tlsFolder" . }}, readOnly: true}
    {{- end }}
    {{- if eq $v.router.discovery "kubernetes" }}
    - {name: api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
    {{- end }}
{{- end }}
