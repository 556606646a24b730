package migrate_test
import ("testing";"os";"strings";"strconv";"reflect";"fmt"
"github.com/distributed-servers/ds/migrate/snapshot")
func TestZZ(t *testing.T){
 b,_:=os.ReadFile("testdata/fuzz/FuzzImport/1985c1c584b5d40d")
 l:=strings.Split(string(b),"\n")
 q:=strings.TrimSuffix(strings.TrimPrefix(l[1],"[]byte("),")")
 s,err:=strconv.Unquote(q); if err!=nil{t.Fatal(err)}
 a,_:=snapshot.Parse([]byte(s)); m,_:=snapshot.Parse(mutant([]byte(s),1851))
 t.Logf("State %v orphan %v una %d nxt %d", a.Conns[0].State, a.Conns[0].Orphan, a.Conns[0].Send.Una,a.Conns[0].Send.Nxt)
 for i:=range m.Conns[0].Send.Queue {g:=m.Conns[0].Send.Queue[i]; t.Logf("%d: len %d %+v", i, snapshot.Len(g.Data), []any{g.Sent,g.Push,g.SACKed,g.Lost,g.XmitAt,g.Xmits})}
 t.Logf("next %d", m.Conns[0].Send.Next)
 var d func(p string,x,y reflect.Value)
 d=func(p string,x,y reflect.Value){ if x.Kind()==reflect.Struct && x.Type().String()!="netip.AddrPort" {for i:=range x.NumField(){d(p+"."+x.Type().Field(i).Name,x.Field(i),y.Field(i))};return}
  xs,ys:=fmt.Sprint(x),fmt.Sprint(y); if xs!=ys {t.Logf("%s: %.200s -> %.200s",p,xs,ys)}}
 d("",reflect.ValueOf(a.Conns[0]),reflect.ValueOf(m.Conns[0]))
}
