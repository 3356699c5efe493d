# 2025-03-14 21:07:43 by RouterOS 7.16.2
# software id = NAS0-DEM0
#
# model = C53UiG+5HPaxD2HPaxD
# serial number = HX00DEMO0001
/interface bridge
add admin-mac=02:00:5E:10:00:01 auto-mac=no comment="LAN; all access ports" \
    frame-types=admit-only-vlan-tagged igmp-snooping=yes name=br-lan \
    port-cost-mode=short priority=0x4000 vlan-filtering=yes
add comment="Containers, routed only" name=br-containers port-cost-mode=\
    short protocol-mode=none
/interface ethernet
set [ find default-name=ether1 ] comment=\
    "Uplink \"Glasfaser\" (ISP box in the cellar)" mac-address=\
    02:00:5E:10:00:11 name=ether1-wan rx-flow-control=auto tx-flow-control=\
    auto
set [ find default-name=ether2 ] comment="B\C3\BCro: NAS" l2mtu=1568
set [ find default-name=ether3 ] advertise=100M-baseT-full,1G-baseT-full \
    comment="AP Dachgescho\C3\9F"
/interface veth
add address=172.20.0.2/24 gateway=172.20.0.1 gateway6="" name=veth-resolver
add address=172.20.0.3/24 gateway=172.20.0.1 gateway6="" name=veth-metrics
/interface wireguard
add comment="Road warriors" listen-port=51820 mtu=1420 name=wg-home \
    private-key="AdArzbky2wHFlJr6r89MYCV4kib+e/YJPf5EzUn9nBg="
add comment="Site to site: branch office" listen-port=51821 mtu=1420 name=\
    wg-branch private-key="feyUboxkzFqncCXBdUq0+ojWyP109msT6tX2BS0tQQc="
/interface vlan
add comment=Management interface=br-lan name=vlan10-mgmt vlan-id=10
add comment="Home and office" interface=br-lan name=vlan20-home vlan-id=20
add comment="Phones, cameras, plugs" interface=br-lan name=vlan30-iot \
    vlan-id=30
add comment="G\C3\A4ste" interface=br-lan name=vlan40-guest vlan-id=40
add comment="IPTV of the ISP" interface=ether1-wan name=vlan7-iptv vlan-id=7
/interface pppoe-client
add add-default-route=yes comment="Fallback contract, kept for emergencies" \
    default-route-distance=5 disabled=yes interface=ether1-wan max-mru=1492 \
    max-mtu=1492 name=pppoe-backup password="not a real one; \$ecret\?" \
    use-peer-dns=yes user=fallback@isp.example
/interface list
add comment="Towards the Internet" name=WAN
add comment="Trusted networks" name=LAN
add comment="May reach the router itself" name=MGMT
add exclude=dynamic include=LAN,MGMT name=DISCOVER
/interface wifi channel
add band=2ghz-ax disabled=no frequency=2412,2437,2462 name=ch-2g \
    reselect-interval=1h..2h width=20mhz
add band=5ghz-ax disabled=no name=ch-5g reselect-interval=1h..2h \
    skip-dfs-channels=10min-cac width=20/40/80mhz
/interface wifi datapath
add bridge=br-lan disabled=no name=dp-home vlan-id=20
add bridge=br-lan client-isolation=yes disabled=no name=dp-guest vlan-id=40
/interface wifi security
add authentication-types=wpa2-psk,wpa3-psk disabled=no ft=yes ft-over-ds=yes \
    management-protection=allowed name=sec-home passphrase=\
    "correct horse \"battery\" staple" wps=disable
add authentication-types=wpa2-psk disabled=no name=sec-guest passphrase=\
    welcome-to-the-lab wps=disable
/interface wifi configuration
add channel=ch-5g country=Germany datapath=dp-home disabled=no mode=ap name=\
    cfg-home security=sec-home security.ft=yes .ft-over-ds=yes ssid=\
    "Caf\C3\A9 Nordlicht"
add country=Germany datapath=dp-guest disabled=no mode=ap name=cfg-guest \
    security=sec-guest ssid="Nordlicht Guests"
/interface wifi
# mode: AP, SSID: Nordlicht, channel: 5180/ax/Ceee
set [ find default-name=wifi1 ] configuration=cfg-home \
    configuration.manager=local .mode=ap .ssid=Nordlicht disabled=no name=\
    wifi-5g
set [ find default-name=wifi2 ] channel=ch-2g configuration=cfg-home \
    configuration.manager=local .mode=ap .ssid=Nordlicht disabled=no name=\
    wifi-2g
# no available channels
add configuration=cfg-guest configuration.mode=ap .ssid="Nordlicht Guests" \
    disabled=no mac-address=02:00:5E:10:00:31 master-interface=wifi-5g name=\
    wifi-5g-guest
/ip dhcp-server option
add code=42 name=ntp value="'10.77.20.1'"
add code=66 name=tftp-server value="s'10.77.30.1'"
/ip pool
add name=pool-mgmt ranges=10.77.10.100-10.77.10.199
add name=pool-home ranges=10.77.20.50-10.77.20.149,10.77.20.160-10.77.20.199
add name=pool-iot ranges=10.77.30.20-10.77.30.250
add name=pool-guest next-pool=none ranges=10.77.40.10-10.77.40.250
/ip dhcp-server
add address-pool=pool-mgmt interface=vlan10-mgmt lease-time=1d name=dhcp-mgmt
add address-pool=pool-home interface=vlan20-home lease-script=\
    ":log info (\"lease \" . \$leaseBound . \" \" . \$leaseActIP)" \
    lease-time=12h name=dhcp-home
add add-arp=yes address-pool=pool-iot interface=vlan30-iot lease-time=1h \
    name=dhcp-iot
# Interface not ready
add address-pool=pool-guest interface=vlan40-guest lease-time=30m name=\
    dhcp-guest
/ppp profile
add change-tcp-mss=yes name=roaming only-one=yes use-encryption=required
set *FFFFFFFE dns-server=10.77.20.1
/queue type
set 0 kind=fq-codel
add cake-diffserv=diffserv4 cake-nat=yes kind=cake name=cake-up
add cake-diffserv=besteffort cake-flowmode=dual-dsthost kind=cake name=\
    cake-down
/queue simple
add comment="Whole uplink, shaped a little below what the ISP sells" \
    max-limit=38M/190M name=uplink queue=cake-up/cake-down target=ether1-wan
add burst-limit=8M/30M burst-threshold=4M/15M burst-time=10s/10s limit-at=\
    1M/5M max-limit=5M/20M name=guests packet-marks=no-mark parent=uplink \
    target=10.77.40.0/24
/queue tree
add disabled=yes max-limit=2M name=voip-up packet-mark=voip parent=\
    ether1-wan priority=1
/routing table
add comment="Traffic that leaves through the branch office" disabled=no fib \
    name=via-branch
add disabled=no fib name=via-backup
/routing ospf instance
add disabled=yes name=ospf-lab router-id=10.77.255.1
/routing ospf area
add disabled=yes instance=ospf-lab name=backbone-lab
/snmp community
set [ find default=yes ] disabled=yes
add addresses=10.77.10.0/24 authentication-password="made up 1" \
    authentication-protocol=SHA1 encryption-password="made up 2" \
    encryption-protocol=AES name=monitoring security=private
/system logging action
set 0 memory-lines=2000
add name=collector remote=10.77.20.5 remote-port=5514 syslog-facility=local3 \
    target=remote
/user group
add name=monitoring policy=\
    read,test,api,rest-api,!local,!telnet,!ssh,!ftp,!reboot,!write,!policy,!winbox,!password,!web,!sniff,!sensitive,!romon
add comment="For the controller; no console" name=controller policy=\
    read,write,api,rest-api,sensitive,test,!local,!telnet,!ssh,!ftp,!reboot,!policy,!winbox,!password,!web,!sniff,!romon
/container
add comment="Resolver for the home" envlist=resolver-env hostname=resolver \
    interface=veth-resolver logging=yes mounts=resolver-data root-dir=\
    usb1/resolver start-on-boot=yes workdir=/opt/app
/container config
set ram-high=256.0MiB registry-url=https://registry.example.org tmpdir=\
    usb1/pull
/container envs
add key=TZ name=resolver-env value=Europe/Berlin
add key=BANNER name=resolver-env value="It's \"up\": a=b; \$HOME\t[x] {y}"
/container mounts
add dst=/var/lib/resolver name=resolver-data src=/usb1/resolver-data
/interface bridge port
add bridge=br-lan comment="NAS and desk" frame-types=\
    admit-only-untagged-and-priority-tagged interface=ether2 pvid=20
add bridge=br-lan comment="Trunk to the access point" frame-types=\
    admit-only-vlan-tagged interface=ether3
add bridge=br-lan edge=yes frame-types=\
    admit-only-untagged-and-priority-tagged interface=ether4 \
    internal-path-cost=10 path-cost=10 pvid=30
add bridge=br-lan comment="Management, bottom drawer" edge=yes frame-types=\
    admit-only-untagged-and-priority-tagged interface=ether5 pvid=10
add bridge=br-containers interface=veth-resolver
add bridge=br-containers interface=veth-metrics
/interface bridge settings
set use-ip-firewall=no
/ip firewall connection tracking
set udp-timeout=10s
/ip neighbor discovery-settings
set discover-interface-list=DISCOVER lldp-med-net-policy-vlan=disabled
/ip settings
set max-neighbor-entries=8192 rp-filter=loose tcp-syncookies=yes
/ipv6 settings
set accept-router-advertisements=yes max-neighbor-entries=8192
/interface bridge vlan
add bridge=br-lan comment=Management tagged=br-lan,ether3 untagged=ether5 \
    vlan-ids=10
add bridge=br-lan comment=Home tagged=br-lan,ether3 untagged=ether2 \
    vlan-ids=20
add bridge=br-lan comment=IoT tagged=br-lan,ether3 untagged=ether4 vlan-ids=30
add bridge=br-lan comment="G\C3\A4ste" tagged=br-lan,ether3 vlan-ids=40
/interface detect-internet
set detect-interface-list=WAN
/interface list member
add interface=ether1-wan list=WAN
add interface=pppoe-backup list=WAN
add comment="not the IPTV network" disabled=yes interface=vlan7-iptv list=WAN
add interface=vlan10-mgmt list=MGMT
add interface=vlan10-mgmt list=LAN
add interface=vlan20-home list=LAN
add interface=vlan30-iot list=LAN
add interface=wg-home list=LAN
add interface=wg-home list=MGMT
add interface=wg-branch list=LAN
/interface wireguard peers
add allowed-address=10.66.0.2/32 comment="Laptop of A. Muster" interface=\
    wg-home name=peer-laptop preshared-key=\
    "TkMDUNCpUzB7wKdveDV7+X5/R+9Wjzse2lBe9lKEJRM=" public-key=\
    "znyL1yBMWI+TtqUV2dZa3CNCt6H3ZsrKjfYscvsu2oI="
add allowed-address=10.66.0.3/32 comment="Telefon (\C3\84nne)" interface=\
    wg-home name=peer-phone public-key=\
    "Jh6tRVNa1nhBzBg/YLAf6sLq+oiiL/ykA1QPuuEivvo="
add allowed-address=10.66.0.4/32 comment=\
    "Lent out, see the list in the drawer" disabled=yes interface=wg-home \
    name=peer-spare public-key="91cODtDXE7C50JA5FhJZGPlWsi1r5/DVQrq9g4Eb83M="
add allowed-address=10.88.0.0/16,10.66.1.2/32 comment=\
    "Branch office; keeps the tunnel open" endpoint-address=\
    branch.example.net endpoint-port=51821 interface=wg-branch name=\
    peer-branch persistent-keepalive=25s public-key=\
    "2EBFfeTh0/BXqi1G6RGgaidK4dv1Ra/2ii7mIfKlOJ8="
/ip address
add address=10.77.10.1/24 comment=Management interface=vlan10-mgmt network=\
    10.77.10.0
add address=10.77.20.1/24 comment="Home and office" interface=vlan20-home \
    network=10.77.20.0
add address=10.77.30.1/24 interface=vlan30-iot network=10.77.30.0
add address=10.77.40.1/24 interface=vlan40-guest network=10.77.40.0
add address=10.66.0.1/24 comment="Road warriors" interface=wg-home network=\
    10.66.0.0
add address=10.66.1.1/30 comment="Transfer to the branch office" interface=\
    wg-branch network=10.66.1.0
add address=172.20.0.1/24 comment=Containers interface=br-containers \
    network=172.20.0.0
add address=192.168.100.2/24 comment="To reach the modem's own page" \
    disabled=yes interface=ether1-wan network=192.168.100.0
/ip cloud
set ddns-enabled=yes ddns-update-interval=10m
/ip dhcp-client
add comment="Uplink; \"use-peer-ntp\" gave wrong time once" interface=\
    ether1-wan use-peer-dns=no use-peer-ntp=no
add add-default-route=no comment=IPTV disabled=yes interface=vlan7-iptv \
    use-peer-dns=no use-peer-ntp=no
/ip dhcp-server lease
add address=10.77.20.5 client-id=1:2:0:5e:10:1:5 comment="NAS \"Regal\"" \
    mac-address=02:00:5E:10:01:05 server=dhcp-home
add address=10.77.20.9 comment="Drucker \96 2. Stock" mac-address=\
    02:00:5E:10:01:09 server=dhcp-home
add address=10.77.30.21 address-lists=no-internet comment=\
    "Camera, front door" mac-address=02:00:5E:10:01:21 server=dhcp-iot
add address=10.77.30.22 address-lists=no-internet comment=\
    "Camera, back yard" mac-address=02:00:5E:10:01:22 rate-limit=2M/6M \
    server=dhcp-iot
add address=10.77.30.40 block-access=yes comment=\
    "Stolen plug; keep blocked!" mac-address=02:00:5E:10:01:40 server=\
    dhcp-iot
/ip dhcp-server network
add address=10.77.10.0/24 comment=Management dns-server=10.77.10.1 domain=\
    mgmt.nordlicht.example gateway=10.77.10.1
add address=10.77.20.0/24 comment="Home and office" dhcp-option=ntp \
    dns-server=10.77.20.1 domain=nordlicht.example gateway=10.77.20.1 \
    ntp-server=10.77.20.1
add address=10.77.30.0/24 comment=IoT dhcp-option=ntp,tftp-server \
    dns-server=10.77.30.1 gateway=10.77.30.1
add address=10.77.40.0/24 comment=Guests dns-server=9.9.9.9,149.112.112.112 \
    gateway=10.77.40.1
/ip dns
set allow-remote-requests=yes cache-max-ttl=1d cache-size=4096KiB servers=\
    9.9.9.9,149.112.112.112,2620:fe::fe use-doh-server=\
    https://dns.example.org/dns-query verify-doh-cert=yes
/ip dns static
add address=10.77.20.1 comment="The router itself" name=\
    router.nordlicht.example type=A
add address=10.77.20.5 name=nas.nordlicht.example ttl=5m type=A
add cname=nas.nordlicht.example name=backup.nordlicht.example type=CNAME
add comment="Everything of the branch is asked there" forward-to=10.88.0.1 \
    match-subdomain=yes name=branch.example.net type=FWD
add comment="Ads; \"^\" and \"\$\" are part of it" regexp=\
    "^(.*\\.)\?(ads|track(er|ing))\\.example\\.(com|net)\$" type=NXDOMAIN
add name=nordlicht.example text="v=spf1 -all" type=TXT
/ip firewall address-list
add address=10.77.10.0/24 comment="May manage the router" list=admins
add address=10.66.0.2 comment="Laptop, over WireGuard" list=admins
add address=0.0.0.0/8 comment="RFC 6890" list=not-in-internet
add address=10.0.0.0/8 comment="RFC 6890" list=not-in-internet
add address=100.64.0.0/10 comment="RFC 6890; our ISP does use it" disabled=\
    yes list=not-in-internet
add address=127.0.0.0/8 comment="RFC 6890" list=not-in-internet
add address=169.254.0.0/16 comment="RFC 6890" list=not-in-internet
add address=172.16.0.0/12 comment="RFC 6890" list=not-in-internet
add address=192.168.0.0/16 comment="RFC 6890" list=not-in-internet
add address=198.18.0.0/15 comment="RFC 6890" list=not-in-internet
add address=224.0.0.0/4 comment=Multicast list=not-in-internet
add address=updates.example.org comment="Resolved by name" list=iot-allowed
add address=time.example.org list=iot-allowed
/ip firewall filter
add action=accept chain=input comment="Established, related, untracked" \
    connection-state=established,related,untracked
add action=drop chain=input comment=Invalid connection-state=invalid
add action=accept chain=input comment="ICMP, not too much of it" limit=\
    50,100:packet protocol=icmp
add action=drop chain=input comment="ICMP beyond that" protocol=icmp
add action=accept chain=input comment="WireGuard from anywhere" dst-port=\
    51820,51821 protocol=udp
add action=accept chain=input comment="DNS for our own networks" dst-port=53 \
    in-interface-list=LAN protocol=udp
add action=accept chain=input dst-port=53 in-interface-list=LAN protocol=tcp
add action=accept chain=input comment="NTP and DHCP" dst-port=67,123 \
    in-interface-list=LAN protocol=udp
add action=accept chain=input comment=\
    "Management, from known addresses only" dst-port=22,443,8291,8729 \
    in-interface-list=MGMT protocol=tcp src-address-list=admins
add action=add-src-to-address-list address-list=knockers \
    address-list-timeout=1d chain=input comment="Remember who tries" \
    connection-state=new dst-port=22,23,3389,8291 in-interface-list=WAN \
    log-prefix="knock: " protocol=tcp
# in/out-interface matcher not possible when interface (ether5) is slave - use master instead (br-lan)
add action=accept chain=input comment="Left over from the old layout" \
    disabled=yes in-interface=ether5
add action=drop chain=input comment="Everything else" log=yes \
    log-prefix="drop-in " in-interface-list=!LAN
add action=drop chain=input comment="LAN may not do more than the above"
add action=fasttrack-connection chain=forward comment=\
    "Fasttrack, but not what is shaped" connection-mark=no-mark \
    connection-state=established,related hw-offload=yes
add action=accept chain=forward comment="Established, related, untracked" \
    connection-state=established,related,untracked
add action=drop chain=forward comment=Invalid connection-state=invalid
add action=jump chain=forward comment="IoT has a chain of its own" \
    in-interface=vlan30-iot jump-target=iot
add action=drop chain=forward comment="Guests reach the Internet only" \
    in-interface=vlan40-guest out-interface-list=!WAN
add action=accept chain=forward comment="LAN to Internet" in-interface-list=\
    LAN out-interface-list=WAN
add action=accept chain=forward comment="Guests to Internet" in-interface=\
    vlan40-guest out-interface-list=WAN
add action=accept chain=forward comment="Home <-> branch" in-interface=\
    wg-branch out-interface=vlan20-home
add action=accept chain=forward in-interface=vlan20-home out-interface=\
    wg-branch
add action=accept chain=forward comment="Road warriors to home" \
    in-interface=wg-home out-interface=vlan20-home
add action=accept chain=forward comment="Forwarded ports" \
    connection-nat-state=dstnat in-interface-list=WAN
add action=drop chain=forward comment="Everything else" log-prefix="drop-fwd "
add action=accept chain=iot comment="Only what they need" dst-address-list=\
    iot-allowed
add action=accept chain=iot dst-port=123 out-interface-list=WAN protocol=udp
add action=reject chain=iot comment="Office hours are over" protocol=tcp \
    reject-with=tcp-reset time=22h-6h,sun,mon,tue,wed,thu,fri,sat
add action=drop chain=iot src-address-list=no-internet
add action=return chain=iot
/ip firewall mangle
add action=change-mss chain=forward comment="Clamp to the tunnel's MTU" \
    new-mss=1380 out-interface=wg-branch passthrough=yes protocol=tcp \
    tcp-flags=syn tcp-mss=1381-65535
add action=mark-connection chain=prerouting comment="VoIP: SIP and RTP" \
    connection-state=new dst-port=5060,10000-20000 new-connection-mark=voip \
    passthrough=yes protocol=udp
add action=mark-packet chain=prerouting connection-mark=voip \
    new-packet-mark=voip passthrough=no
add action=mark-routing chain=prerouting comment=\
    "The TV leaves through the branch" disabled=yes new-routing-mark=\
    via-branch passthrough=no src-address=10.77.30.60
/ip firewall nat
add action=masquerade chain=srcnat comment="Everything that leaves" \
    ipsec-policy=out,none out-interface-list=WAN
add action=masquerade chain=srcnat comment="Containers" src-address=\
    172.20.0.0/24
add action=dst-nat chain=dstnat comment="NAS: sync" dst-port=22000 \
    in-interface-list=WAN protocol=tcp to-addresses=10.77.20.5 to-ports=22000
add action=redirect chain=dstnat comment="Nobody gets around our resolver" \
    dst-port=53 in-interface=vlan30-iot protocol=udp to-ports=53
add action=src-nat chain=srcnat comment="Hairpin for \"nas\"" disabled=yes \
    dst-address=10.77.20.5 src-address=10.77.20.0/24 to-addresses=10.77.20.1
/ip firewall raw
add action=drop chain=prerouting comment=\
    "Spoofed: private source on the uplink" in-interface-list=WAN \
    log-prefix="spoof " src-address-list=not-in-internet
add action=drop chain=prerouting comment="Who knocked stays out" \
    in-interface-list=WAN src-address-list=knockers
add action=notrack chain=prerouting comment="Backups need no tracking" \
    disabled=yes dst-address=10.88.0.5 src-address=10.77.20.5
/ip firewall service-port
set ftp disabled=yes
set sip disabled=yes
/ip ipsec profile
set [ find default=yes ] dpd-interval=2m dpd-maximum-failures=5
/ip route
add comment="Branch office" disabled=no distance=1 dst-address=10.88.0.0/16 \
    gateway=wg-branch routing-table=main scope=30 suppress-hw-offload=no \
    target-scope=10
add check-gateway=ping comment="All of via-branch" disabled=no distance=1 \
    dst-address=0.0.0.0/0 gateway=10.66.1.2%wg-branch routing-table=\
    via-branch
add blackhole comment="Never send private ranges to the ISP" disabled=no \
    distance=250 dst-address=10.0.0.0/8
add comment="Fallback contract" disabled=yes distance=5 dst-address=\
    0.0.0.0/0 gateway=pppoe-backup routing-table=via-backup
/ip service
set telnet disabled=yes
set ftp disabled=yes
set www disabled=yes
set ssh address=10.77.10.0/24,10.66.0.0/24 port=22
set www-ssl address=10.77.10.0/24 certificate=router-2025 disabled=no \
    tls-version=only-1.2
set api disabled=yes
set winbox address=10.77.10.0/24
set api-ssl address=10.77.10.0/24 certificate=router-2025
/ip ssh
set host-key-type=ed25519 strong-crypto=yes
/ipv6 route
add blackhole comment="Own prefix, no loops" disabled=no distance=254 \
    dst-address=fd00:77::/48
/ipv6 address
add address=fd00:77:0:20::1 comment="Home, unique local" interface=vlan20-home
add address=::1 from-pool=isp-prefix interface=vlan20-home
/ipv6 dhcp-client
add comment="Prefix of the ISP" interface=ether1-wan pool-name=isp-prefix \
    pool-prefix-length=64 request=prefix use-peer-dns=no
/ipv6 firewall address-list
add address=fe80::/10 comment="Link local" list=local
add address=fd00:77::/48 comment="Our own" list=local
/ipv6 firewall filter
add action=accept chain=input comment="Established, related, untracked" \
    connection-state=established,related,untracked
add action=drop chain=input comment=Invalid connection-state=invalid
add action=accept chain=input comment=ICMPv6 protocol=icmpv6
add action=accept chain=input comment="DHCPv6 of the ISP" dst-port=546 \
    protocol=udp src-address=fe80::/10
add action=accept chain=input comment="From our own" in-interface-list=LAN \
    src-address-list=local
add action=drop chain=input comment="Everything else"
add action=accept chain=forward connection-state=established,related,untracked
add action=drop chain=forward connection-state=invalid
add action=accept chain=forward comment="ICMPv6, with hops left" hop-limit=\
    not-equal:1 protocol=icmpv6
add action=accept chain=forward in-interface-list=LAN out-interface-list=WAN
add action=drop chain=forward comment="Everything else"
/ipv6 nd
set [ find default=yes ] advertise-dns=no disabled=yes
add dns=fd00:77:0:20::1 interface=vlan20-home ra-lifetime=15m
/routing rule
add action=lookup-only-in-table comment="TV through the branch" disabled=yes \
    src-address=10.77.30.60/32 table=via-branch
/snmp
set contact="Hausmeister \"K\C3\B6nig\"" enabled=yes location=\
    "Keller, links" trap-version=3
/system clock
set time-zone-name=Europe/Berlin
/system identity
set name=nordlicht-gw
/system leds settings
set all-leds-off=after-1h
/system logging
set 0 topics=info,!dhcp,!wireless
add action=collector prefix=gw topics=firewall
add action=collector topics=error,critical
/system note
set note="Nordlicht home office\r\nChanges only through the controller!\r\n" \
    show-at-login=no
/system ntp client
set enabled=yes
/system ntp server
set enabled=yes use-local-clock=yes
/system ntp client servers
add address=0.de.pool.ntp.org
add address=time.example.org iburst=no
/system scheduler
add comment="Every night" interval=1d name=nightly-backup on-event="/system \
    backup save name=(\"auto-\" . [/system identity get name]) dont-encrypt=\
    yes" policy=ftp,read,write,policy,test,sensitive start-date=2024-11-01 \
    start-time=03:15:00
add interval=5m name=watch-address on-event=address-watch policy=\
    read,write,test start-time=startup
/system script
add comment="Called by the scheduler" dont-require-permissions=no name=\
    address-watch owner=admin policy=read,write,test source="# notifies the \
    office when the uplink address changes\r\
    \n:global lastAddress\r\
    \n:local current [/ip address get [find interface=ether1-wan] address]\r\
    \n:if (\$current != \$lastAddress) do={\r\
    \n    :log warning \"uplink address is now \$current\"\r\
    \n    /tool e-mail send to=\"noc@example.org\" subject=\"Address of \$[/\
    system identity get name]\" body=\"\$lastAddress -> \$current\\r\\n50% d\
    one\?\"\r\
    \n    :set lastAddress \$current\r\
    \n}\r\
    \n"
add dont-require-permissions=no name=hello owner=admin policy=read \
    source=":put \"Gr\C3\BC\C3\9Fe\""
/tool bandwidth-server
set enabled=no
/tool e-mail
set from=router@nordlicht.example port=587 server=mail.example.org tls=\
    starttls user=router
/tool graphing interface
add allow-address=10.77.10.0/24 interface=ether1-wan store-on-disk=no
/tool mac-server
set allowed-interface-list=none
/tool mac-server mac-winbox
set allowed-interface-list=MGMT
/tool mac-server ping
set enabled=no
/tool netwatch
add comment="Branch reachable\?" disabled=no down-script=\
    ":log error \"branch is down\"" host=10.66.1.2 http-codes="" interval=\
    30s name=branch test-script="" timeout=2s type=icmp up-script=\
    ":log info \"branch is back\""
/user
add address=10.77.10.0/24,10.66.0.0/24 comment="The controller" group=\
    controller name=nasnet
add comment="Prometheus" group=monitoring name=metrics
/user aaa
set default-group=read
/user settings
set minimum-password-length=12
