package Serai::Plain;

# A plain CGI server (RFC 3875): a process for each request, with the environment
# that Serai gives.

use v5.36;
use POSIX ();

# run runs a script of the home's site/cgi-bin, and reads what it said. Of is:
# env, path (PATH_INFO), post (a body), 500 (no reply is expected).
sub run ($home, $file, $is) {
    my $root = "$home/site";
    my $path = $is->{path} // '';
    my %env = (
        PATH => '/usr/local/bin:/usr/bin:/bin', LANG => 'C.UTF-8', HOME => $home, USER => 'alice', LOGNAME => 'alice', MODE => 'test',
        REQUEST_METHOD => 'GET', SCRIPT_NAME => "/cgi-bin/$file", length $path ? (PATH_INFO => $path, PATH_TRANSLATED => "$root$path") : (),
        REQUEST_URI => "/cgi-bin/$file$path", QUERY_STRING => '', SERVER_NAME => 'shop.example.com', SERVER_PORT => 80, SERVER_PROTOCOL => 'HTTP/1.1',
        REMOTE_ADDR => '192.0.2.1', HTTP_HOST => 'shop.example.com', SERAI_REQUEST => 'r1', GATEWAY_INTERFACE => 'CGI/1.1', DOCUMENT_ROOT => $root,
        SCRIPT_FILENAME => "$root/cgi-bin/$file", SERVER_SOFTWARE => 'Serai', %{ $is->{env} },
    );
    open my $in, '+>', undef or die;
    syswrite $in, $is->{post} // '';
    sysseek $in, 0, 0;
    open my $out, '+>', undef or die;
    open my $log, '+>', undef or die;
    my @arguments = $env{QUERY_STRING} =~ /=/ || $env{REQUEST_METHOD} !~ /\A(?:GET|HEAD)\z/ ? () : map { s/%([0-9A-F]{2})/chr hex $1/ger } split /\+/, $env{QUERY_STRING};
    my $pid = fork // die;
    if (!$pid) {
        %ENV = %env;
        chdir "$root/cgi-bin";
        umask 022;
        POSIX::dup2(fileno $in, 0);
        POSIX::dup2(fileno $out, 1);
        POSIX::dup2(fileno $log, 2);
        my @command = -x $file ? "$root/cgi-bin/$file" : ($^X, first_line($file) =~ /\A#!\S+ (-\S+)/ ? $1 : (), "$root/cgi-bin/$file");
        exec { $command[0] } @command, @arguments or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    my ($text, $said) = map { seek $_, 0, 0; local $/; scalar readline $_ } $out, $log;
    return { status => 500, log => $said } if exists $is->{500};
    $text =~ s/\A(.*?)\r?\n\r?\n//s or return { status => 500, body => '', log => "no head: $text\n$said" };
    my ($status, @headers);
    for (split /\r?\n(?![ \t])/, $1) {
        if (m{\AHTTP/\S+ (\d+)}) { $status = $1; next }
        s/\r?\n[ \t]+/ /g;
        my ($n, $v) = /\A([^:]+):\s*(.*?)\s*\z/ or die "no header: $_";
        if ($n eq 'Status') { ($status) = $v =~ /\A(\d+)/ } else { push @headers, $n, $v }
    }
    $status //= (grep { /\Alocation\z/i } @headers) ? 302 : 200;
    $text = '' if $env{REQUEST_METHOD} eq 'HEAD';
    return { status => $status, headers => \@headers, body => $text, log => $said };
}

# shown is a reply as a text that can be compared.
sub shown ($reply, $is) {
    return "no reply: " . ($reply->{abort} // '') if !defined $reply->{status};
    return "500\n" if exists $is->{500} && $reply->{status} == 500 && ($reply->{body} // '') =~ /\A(?:500 Internal Server Error\n|\z)/;
    my $body = $reply->{body} =~ s/; at .*//r;
    my @h = @{ $reply->{headers} };
    my $head = '';
    while (my ($n, $v) = splice @h, 0, 2) { $v =~ s/\w{3}, \d\d.\w{3}.\d{4} [\d:]+ GMT|\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}/DATE/; $head .= "$n: $v\n" }
    return "$reply->{status}\n$head\n$body";
}

sub first_line ($file) {
    open my $text, '<', $file or return '';
    return readline($text) // '';
}

1;
